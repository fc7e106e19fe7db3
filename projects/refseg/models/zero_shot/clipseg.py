"""CLIPSeg: one map for a phrase, small, and trainable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.encoders.text import settings_of
from refseg.models.losses import covered_share, mask_bce_loss
from refseg.models.zero_shot.base import ZeroShotSegmentor, images_of, load_whole, model_type, texts_of
from refseg.pretrained import load_pretrained
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


@MODELS.register_module()
class CLIPSeg(ZeroShotSegmentor):
    """CLIPSeg. Training changes its decoder with its own loss, binary cross-entropy. CLIP stays as it is.

    It predicts no instances. The no-target probability is 1 minus the highest probability of a pixel.

    Args:
        pretrained: Folder, or name on the hub; None to build random weights from `config`, for a checkpoint.
        config: Architecture, if `pretrained` is None.
        processor: Folder of the processor, if it is not `pretrained`. Training saves a copy beside its checkpoints.
        data_preprocessor: Config of the data preprocessor.
        postprocess: Arguments of `PostProcess`.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict | None = None,
        processor: str | None = None,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

        if pretrained is None and (config is None or processor is None):
            raise ConfigError("CLIPSeg needs 'pretrained', or both 'config' and 'processor'.")
        source = str(pretrained or processor)
        sources = () if pretrained is None else (pretrained,)
        super().__init__(sources=sources, data_preprocessor=data_preprocessor, postprocess=postprocess)
        if pretrained is None:
            settings = {key: value for key, value in config.items() if key != "model_type"}
            self.net = CLIPSegForImageSegmentation(CLIPSegConfig(**settings)).requires_grad_(False)
        else:
            model_type(pretrained, "pretrained", ("clipseg",))
            self.net = load_whole(CLIPSegForImageSegmentation, pretrained)
        self.net.decoder.requires_grad_(True)
        self.processor = load_pretrained(CLIPSegProcessor, processor or source)

    @staticmethod
    def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of a config that stand for `pretrained` where its folder is missing."""
        from transformers import CLIPSegConfig

        settings = load_pretrained(CLIPSegConfig, config["pretrained"])
        return {"config": settings_of(settings), "processor": config.get("processor") or config["pretrained"]}

    def encode_images(self, batch: Batch) -> list[Tensor]:
        """Return the activations of CLIP's layers that the decoder reads, (B, 1 + patches, C) each."""
        pixels = self.processor.image_processor(images=images_of(batch), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            states = self.net.clip.get_image_features(
                pixel_values=pixels.to(batch.images.device), output_hidden_states=True, interpolate_pos_encoding=True
            ).hidden_states
        return [states[layer + 1] for layer in self.net.extract_layers]  # state 0 is the embedding

    def infer_encoded(self, batch: Batch, images: Any) -> Prediction:
        tokens = self.processor.tokenizer(
            texts_of(batch), padding=True, truncation=True, max_length=self._num_tokens, return_tensors="pt"
        ).to(batch.images.device)
        with torch.no_grad():
            conditions = self.net.clip.get_text_features(**tokens).pooler_output
        logits = self.net.decoder([states[batch.image_of] for states in images], conditions).logits
        return Prediction(logits, no_target_logit=-logits.flatten(1).amax(1), covers="image")

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        logits = prediction.mask_logits
        sizes = [batch.metas[image].content_size for image in batch.image_of.tolist()]
        targets = [
            covered_share(mask[None, :height, :width], tuple(logits.shape[1:]))
            for mask, (height, width) in zip(batch.merged_masks(), sizes, strict=True)
        ]
        return {"loss_mask": mask_bce_loss(logits, torch.cat(targets))}

    def save_processor(self, folder: str | Path) -> None:
        """Save the processor beside a checkpoint, which then answers on a machine without the hub."""
        self.processor.save_pretrained(str(folder))

    @property
    def _num_tokens(self) -> int:
        return self.net.config.text_config.max_position_embeddings
