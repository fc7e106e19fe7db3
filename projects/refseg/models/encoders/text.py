"""Text encoders of transformers (BERT, DistilBERT, RoBERTa, XLM-R, CamemBERT, CLIP text) behind one stage API.

Letters: U distinct texts, L words, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.compat import keep_weights
from refseg.datasets.tokenizers import load_pretrained
from refseg.errors import ConfigError
from refseg.registry import MODELS
from refseg.structures import TextFeatures, TextTokens

# The model types whose layers, run one by one, are known to give what transformers' own forward gives. Others, such as
# DeBERTa and MPNet, also pass relative positions from layer to layer.
SUPPORTED_TYPES = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "clip_text_model")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def build_text_model(pretrained: str | None, config: dict | None) -> nn.Module:
    """Build a transformers text model (`text_settings`), with random weights if `pretrained` is None."""
    from transformers import AutoModel

    settings = text_settings(pretrained, config)
    if pretrained is None:
        return AutoModel.from_config(settings)
    return load_pretrained(AutoModel, pretrained, config=settings)


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
    check_model_type(settings.model_type, pretrained)
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


def describe_text_model(pretrained: str, config: dict | None) -> str:
    """Describe a text model, without reading its weights, or raise an error as `text_settings` does."""
    found = text_settings(pretrained, config)
    return f"{pretrained}: {found.model_type}, {found.num_hidden_layers} layers of {found.hidden_size}"


def check_model_type(model_type: str, pretrained: str | None = None) -> None:
    """Raise a ConfigError for a model type whose layers cannot be run in stages."""
    if model_type not in SUPPORTED_TYPES:
        where = f" ({pretrained})" if pretrained else ""
        raise ConfigError(
            f"TextEncoder does not support text models of type {model_type!r}{where}. "
            f"Supported types: {', '.join(SUPPORTED_TYPES)}."
        )


def text_config(model_type: str, **settings: Any) -> Any:
    """Return transformers' config of that type. Unknown settings are an error, which transformers ignores."""
    from transformers import AutoConfig

    check_model_type(model_type)
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
    """Word features of phrases. Each distinct phrase is encoded once.

    A fused encoder calls `embed`, then `run_stage` for each stage, then `finish`. Calling the module does all of it.
    The pooler is dropped.

    Args:
        pretrained: Folder or hub name of the weights; random weights if None.
        config: Settings that differ from those of `pretrained`. Without it, the architecture: model_type and settings
            that differ from that type's defaults.
        stages: Number of layers of each stage, for example (6, 1, 1, 1). Layers beyond their sum are dropped. None is
            one stage of all layers.
        train_embeddings: Whether the embeddings are trained.
        trained_layers: Number of trained layers, counted from the first one; None for all. Gradients pass through
            frozen layers.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict | None = None,
        stages: Sequence[int] | None = None,
        train_embeddings: bool = True,
        trained_layers: int | None = None,
    ) -> None:
        super().__init__()
        model = build_text_model(pretrained, config)
        self.embed_dim: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
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
        self.embeddings.requires_grad_(train_embeddings)
        if trained_layers is not None:
            if not 0 <= trained_layers <= len(self.layers):
                raise ValueError(f"TextEncoder.trained_layers must be in 0..{len(self.layers)}, not {trained_layers}.")
            self.layers[trained_layers:].requires_grad_(False)

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

    def forward(self, tokens: TextTokens) -> TextFeatures:
        hidden, bias = self.embed(tokens)
        for stage in range(self.num_stages):
            hidden = self.run_stage(stage, hidden, bias)
        return TextFeatures(self.finish(hidden), tokens.word_mask, tokens.text_of)
