"""Text encoders of transformers.

Letters: U distinct texts, L words, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.compat import keep_weights
from refseg.errors import ConfigError, check_choice, config_errors
from refseg.lora import Lora, add_lora
from refseg.models.encoders.vision import freeze_unused
from refseg.models.layers import masked_mean
from refseg.pretrained import load_model, load_pretrained
from refseg.registry import MODELS
from refseg.structures import TextFeatures, TextTokens

# The model types whose layers, run one by one, are known to give what transformers' own forward gives. Others, such as
# DeBERTa and ModernBERT, also pass positions or masks from layer to layer, so they run as a whole.
STAGED_TYPES = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "clip_text_model")
CACHE_BYTES = 512 * 2**20  # of kept features of a frozen encoder
ALIKE = 32  # phrases that it encodes at once
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def build_text_model(pretrained: str | None, config: dict | None) -> nn.Module:
    """Build a transformers text model (`text_settings`), with random weights if `pretrained` is None."""
    import transformers

    settings = text_settings(pretrained, config)
    # AutoModel does not know the text towers of SigLIP
    towers = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}
    if settings.model_type in towers:
        model_class = getattr(transformers, towers[settings.model_type])
        build = model_class._from_config
    else:
        model_class = transformers.AutoModel
        build = model_class.from_config
    if pretrained is None:
        with config_errors("text_encoder.config"):
            return build(settings)
    return load_model(model_class, pretrained, settings)


def text_settings(pretrained: str | None, config: dict | None) -> Any:
    """Return the architecture of a text model, as transformers' config.

    Args:
        pretrained: Folder, or name in the hub's cache, whose config is read; its weights are not. If None, `config`
            holds the architecture, and the rest are the defaults of its model_type.
        config: Settings to change, such as dropout. Sizes are fixed by the weights, so they must agree with the folder.
    """
    from transformers import AutoConfig

    if pretrained is None:
        if not config:
            raise ValueError("TextEncoder needs pretrained, config, or both")
        return text_config(**config)
    settings = load_pretrained(AutoConfig, pretrained)
    settings = getattr(settings, "text_config", None) or settings  # a CLIP of both towers
    if getattr(settings, "is_encoder_decoder", False) or not getattr(settings, "vocab_size", None):
        raise ConfigError(f"TextEncoder: {pretrained} is a {settings.model_type} model, not an encoder of texts.")
    changes = dict(config or {})
    model_type = changes.pop("model_type", settings.model_type)
    if model_type != settings.model_type:
        raise ConfigError(
            f"{pretrained} is a {settings.model_type} model, and the text encoder's config says {model_type!r}. "
            f"Set config.model_type={settings.model_type}."
        )
    text_config(model_type, **changes)  # refuses unknown settings
    differ = [name for name in SIZES if name in changes and getattr(settings, name, None) != changes[name]]
    if differ:
        raise ConfigError(
            f"{pretrained} has {', '.join(f'{name} {getattr(settings, name)}' for name in differ)}; the text encoder's "
            f"config says {', '.join(str(changes[name]) for name in differ)}. Remove these settings: the "
            "folder says them."
        )
    settings.update(changes)
    return settings


def settings_of(settings: Any) -> dict[str, Any]:
    """Return the settings of a transformers config that differ from the defaults of its model_type, with that type."""
    plain = type(settings)().to_dict()
    differ = {key: value for key, value in settings.to_dict().items() if key in plain and value != plain[key]}
    for key in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        differ.pop(key, None)
    return {"model_type": settings.model_type, **differ}


def text_config(model_type: str, **settings: Any) -> Any:
    """Return transformers' config of that type. Unknown settings are an error, which transformers ignores."""
    from transformers import AutoConfig

    with config_errors(f"text_encoder.config.model_type {model_type!r}"):
        config = AutoConfig.for_model(model_type)
    unknown = sorted(set(settings) - set(config.to_dict()) - set(config.attribute_map))
    if unknown:
        raise ValueError(f"text_encoder.config: {type(config).__name__} has no setting {unknown[0]!r}.")
    return AutoConfig.for_model(model_type, **settings)


def check_token_ids(tokens: TextTokens, vocab_size: int) -> None:
    """Raise an error for token ids beyond the vocabulary; on the CPU only, since a GPU would have to synchronize."""
    if not torch.compiler.is_compiling() and tokens.ids.device.type == "cpu" and int(tokens.ids.max()) >= vocab_size:
        raise ValueError(
            f"Token id {int(tokens.ids.max())} exceeds the text encoder's vocab_size {vocab_size}. "
            "Use the tokenizer that belongs to the text encoder."
        )


def attention_bias(word_mask: Tensor, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """Return an additive mask (U, 1, L or 1, L): 0 where attention is allowed, the dtype's minimum elsewhere."""
    allowed = word_mask[:, None, None, :]
    if causal:
        length = word_mask.shape[1]
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=word_mask.device).tril()
    return torch.zeros(allowed.shape, dtype=dtype, device=word_mask.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


@MODELS.register_module()
class TextEncoder(BaseModule):
    """Word features of phrases, of any text model of transformers. Each distinct phrase is encoded once.

    The layers of BERT-like models and of CLIP can be run in stages (`STAGED_TYPES`): a fused encoder calls `embed`,
    then `run_stage` for each stage, then `finish`. Calling the module does all of it. Any other model, such as
    ModernBERT or SigLIP's, runs as a whole. Poolers are dropped.

    Args:
        pretrained: Folder or hub name of the weights, or "minilm" (`refseg[pretrained]`); random weights if None.
        config: Settings that differ from those of `pretrained`. Without it, the architecture: model_type and settings
            that differ from that type's defaults.
        stages: Number of layers of each stage, for example (6, 1, 1, 1). Layers beyond their sum are dropped. None is
            one stage of all layers.
        train_embeddings: Whether the embeddings are trained.
        trained_layers: Number of trained layers, counted from the first one; None for all. Gradients pass through
            frozen layers.
        frozen: Whether nothing is trained. Then dropout is off, and features of phrases are kept and reused.
        lora: Settings of `Lora`, such as dict(rank=8): the weights stay, and linear layers get trained additions.
        sentence: Feature of the first word. "first" is the model's own ([CLS]). "mean" replaces it by the mean over
            words, as long as the root of C: the sentence that MiniLM was trained for, while its [CLS] means nothing.
        sentence_only: In training, the probability that a phrase keeps its first word only. From few phrases, decoders
            learn single words by heart. The sentence is alike for paraphrases (docs/finetune.md).
    """

    config_groups: ClassVar[dict[str, type]] = {"lora": Lora}

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict | None = None,
        stages: Sequence[int] | None = None,
        train_embeddings: bool = True,
        trained_layers: int | None = None,
        frozen: bool = False,
        lora: dict | None = None,
        sentence: Literal["first", "mean"] = "first",
        sentence_only: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("text.sentence", sentence, ("first", "mean"))
        if not 0 <= sentence_only <= 1:
            raise ConfigError(f"TextEncoder.sentence_only is a probability, not {sentence_only}.")
        self.sentence, self.sentence_only = sentence, sentence_only
        self.drops_words = bool(sentence_only)  # in training
        model = build_text_model(pretrained, config)
        if lora is not None:
            add_lora(model, lora, owner=f"TextEncoder {model.config.model_type}", frozen=frozen)
        self.embed_dim: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.frozen = frozen
        self._cache: dict[tuple, Tensor] = {}
        self._cached_bytes = 0
        if model.config.model_type in STAGED_TYPES:
            self.causal = hasattr(model, "final_layer_norm")  # CLIP's text tower
            self.embeddings = keep_weights(model.embeddings)
            stack = model.transformer if hasattr(model, "transformer") else model.encoder  # DistilBERT; all others
            layers = getattr(stack, "layer", None) or stack.layers
            self.stages = tuple(stages) if stages is not None else (len(layers),)
            if min(self.stages) < 1 or sum(self.stages) > len(layers):
                raise ValueError(f"TextEncoder.stages {self.stages} do not fit a model of {len(layers)} layers")
            self.layers = keep_weights(nn.ModuleList(layers[: sum(self.stages)]))
            last = sum(self.stages) == len(layers)
            self.final_norm = keep_weights(model.final_layer_norm) if self.causal and last else nn.Identity()
            self.embeddings.requires_grad_(train_embeddings and lora is None)
            if trained_layers is not None:
                if not 0 <= trained_layers <= len(self.layers):
                    raise ValueError(
                        f"TextEncoder.trained_layers must be in 0..{len(self.layers)}, not {trained_layers}"
                    )
                self.layers[trained_layers:].requires_grad_(False)
        else:
            if stages is not None or trained_layers is not None or not train_embeddings:
                raise ConfigError(
                    f"TextEncoder: the layers of a {model.config.model_type} model are not run one by one here, so "
                    f"stages, trained_layers and train_embeddings do not apply. They do for {', '.join(STAGED_TYPES)}."
                )
            self.stages = (1,)
            self.model = keep_weights(model)
            words = torch.ones(1, 2, dtype=torch.long)
            freeze_unused(self.model, [self.model(input_ids=words, attention_mask=words).last_hidden_state])
        if len(self.stages) > 1 and (sentence != "first" or sentence_only):
            raise ConfigError(
                "TextEncoder: sentence and sentence_only need stages=None, where no fusion reads words early."
            )
        if frozen:
            self.requires_grad_(False).eval()

    @staticmethod
    def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of this encoder's config that stands for `pretrained` where its folder is missing."""
        settings = text_settings(config["pretrained"], config.get("config"))
        return {"config": settings_of(settings)}

    @staticmethod
    def describe(config: Mapping[str, Any]) -> str:
        """Describe `pretrained` without reading weights, or raise an error as building would."""
        found = text_settings(config["pretrained"], config.get("config"))
        return f"{config['pretrained']}: {found.model_type}, {found.num_hidden_layers} layers of {found.hidden_size}"

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    def embed(self, tokens: TextTokens) -> tuple[Tensor, Tensor]:
        """Return embeddings (U, L, C) and the attention bias for every stage."""
        check_token_ids(tokens, self.vocab_size)
        hidden = self.embeddings(input_ids=tokens.ids)
        return hidden, attention_bias(tokens.word_mask, hidden.dtype, causal=self.causal)

    def run_stage(self, stage: int, hidden: Tensor, bias: Tensor) -> Tensor:
        """Run the layers of one stage: (U, L, C) -> (U, L, C)."""
        first = sum(self.stages[:stage])
        for layer in self.layers[first : first + self.stages[stage]]:
            output: Any = layer(hidden, bias)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the norm after the last layer, if the model has one."""
        return self.final_norm(hidden)

    def encode(self, tokens: TextTokens) -> Tensor:
        """Return the word features (U, L, C)."""
        if hasattr(self, "model"):
            check_token_ids(tokens, self.vocab_size)
            return self.model(input_ids=tokens.ids, attention_mask=tokens.word_mask.long()).last_hidden_state
        hidden, bias = self.embed(tokens)
        for stage in range(self.num_stages):
            hidden = self.run_stage(stage, hidden, bias)
        return self.finish(hidden)

    def forward(self, tokens: TextTokens) -> TextFeatures:
        recalls = self.frozen and not torch.compiler.is_compiling()
        word_feats = self.recall(tokens) if recalls else self.encode(tokens)
        word_mask = tokens.word_mask
        if self.sentence == "mean":
            mean = F.normalize(masked_mean(word_feats, word_mask), dim=-1) * self.embed_dim**0.5
            word_feats = torch.cat([mean[:, None], word_feats[:, 1:]], 1)
        if self.drops_words:
            keep = torch.rand(len(word_mask), 1, device=word_mask.device) >= self.sentence_only
            first = torch.arange(word_mask.shape[1], device=word_mask.device) == 0
            word_mask = word_mask & (keep | first)
        return TextFeatures(word_feats, word_mask, tokens.text_of)

    @torch.no_grad()
    def recall(self, tokens: TextTokens) -> Tensor:
        """Return what `encode` does, with zeros at padding. Only phrases that were not seen before are encoded."""
        autocast = torch.is_autocast_enabled(tokens.ids.device.type)
        lengths = tokens.word_mask.sum(1).tolist()
        keys = [(autocast, *ids[:length]) for ids, length in zip(tokens.ids.tolist(), lengths, strict=True)]
        found = {key: self._cache[key] for key in keys if key in self._cache}
        new = sorted((row for row, key in enumerate(keys) if key not in found), key=lengths.__getitem__)
        for start in range(0, len(new), ALIKE):  # phrases of about the same length
            chunk = new[start : start + ALIKE]
            rows = torch.tensor(chunk, device=tokens.ids.device)
            ids, word_mask = (x.index_select(0, rows)[:, : lengths[chunk[-1]]] for x in (tokens.ids, tokens.word_mask))
            for row, feats in zip(chunk, self.encode(TextTokens(ids, word_mask, rows)), strict=True):
                found[keys[row]] = feats = feats[: lengths[row]].clone()
                if self._cached_bytes + feats.nbytes <= CACHE_BYTES:
                    self._cache[keys[row]] = feats
                    self._cached_bytes += feats.nbytes
        padded = nn.utils.rnn.pad_sequence([found[key] for key in keys], batch_first=True)
        return F.pad(padded, (0, 0, 0, tokens.ids.shape[1] - padded.shape[1]))

    def forget(self) -> None:
        """Drop the kept features, which belong to other weights or another device."""
        self._cache.clear()
        self._cached_bytes = 0

    def train(self, mode: bool = True) -> TextEncoder:
        self.drops_words = mode and self.sentence_only > 0
        return super().train(mode and not self.frozen)

    def _apply(self, *args: Any, **kwargs: Any) -> TextEncoder:
        self.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)
