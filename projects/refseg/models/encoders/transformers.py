"""Image encoders of transformers: its backbones, and the vision towers of SigLIP and CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refseg.errors import ConfigError, config_errors
from refseg.models.encoders.text import settings_of
from refseg.models.encoders.vision import PROBE_SIDE, BackboneEncoder
from refseg.pretrained import downloads_allowed, load_model, load_pretrained
from refseg.registry import MODELS

NUM_STAGES = 4
TOWERS = ("siglip_vision_model", "siglip2_vision_model", "clip_vision_model")  # not among transformers' backbones


@MODELS.register_module()
class TransformersVisionEncoder(BackboneEncoder):
    """A vision model of transformers: Swin, Swinv2, DINOv2, DINOv3, ConvNeXtV2, BEiT, SigLIP, SigLIP 2, CLIP, ...

    It returns maps and cannot be run stage by stage. ViTs have one stride and get a `SimplePyramid`.

    Args:
        pretrained: Folder, or name on the hub, of config and weights; random weights if None.
        config: Settings that differ from those of `pretrained`. Without it, the architecture: model_type and settings
            that differ from that type's defaults.
        out_stages: Maps that the decoder uses, among the last four of different stride, or among the pyramid's.
        pyramid_dim: Channels of the pyramid's maps.
        checkpointing: Recompute blocks in the backward pass, which saves memory and costs time.
        frozen: Whether the weights stay as they are, in evaluation mode. The pyramid is trained.
        lora: Settings of `Lora`, such as dict(rank=8): the weights stay, and linear layers get trained additions.
        mean, std: Of the images that the weights expect, per channel, in 0..255. The default is what the folder's
            preprocessor_config.json says, else ImageNet's.
    """

    one_size = "The image encoders of transformers compute with one image size while they are traced."

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict | None = None,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        pyramid_dim: int = 256,
        checkpointing: bool = False,
        frozen: bool = False,
        lora: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        settings = vision_settings(pretrained, config)
        self._is_tower = settings.model_type in TOWERS
        with config_errors("TransformersVisionEncoder"):
            model = build_vision_model(pretrained, settings)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        super().__init__(backbone=model, out_stages=out_stages, pyramid_dim=pyramid_dim, frozen=frozen, lora=lora)
        found = normalization(pretrained) if pretrained else {}
        self.mean = tuple(mean or found.get("mean") or self.mean)
        self.std = tuple(std or found.get("std") or self.std)

    @staticmethod
    def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of this encoder's config that stand for `pretrained` where its folder is missing."""
        settings = vision_settings(config["pretrained"], config.get("config"))
        return {**normalization(config["pretrained"]), **{k: config[k] for k in ("mean", "std") if config.get(k)},
                "config": settings_of(settings)}  # fmt: skip

    @staticmethod
    def describe(config: Mapping[str, Any]) -> str:
        """Describe `pretrained` without reading weights, or raise an error as building would."""
        return f"{config['pretrained']}: {vision_settings(config['pretrained'], config.get('config')).model_type}"

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        if not self._is_tower:
            return self.backbone(images).feature_maps
        config = self.backbone.config
        size = [side // config.patch_size for side in images.shape[-2:]]
        if config.model_type == "siglip2_vision_model":  # takes patches, row by row
            side = config.patch_size
            patches = images.unfold(2, side, side).unfold(3, side, side)  # (N, 3, h, w, side, side)
            patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
            whole = torch.ones(patches.shape[:2], dtype=torch.long, device=images.device)
            shapes = torch.tensor([size] * len(images), device=images.device)
            tokens = self.backbone(patches, whole, shapes).last_hidden_state
        else:
            tokens = self.backbone(images, interpolate_pos_encoding=True).last_hidden_state
        return [tokens[:, -size[0] * size[1] :].transpose(1, 2).unflatten(2, size)]  # without CLIP's class token


def vision_settings(pretrained: str | None, config: dict | None) -> Any:
    """Return transformers' config of a vision model, the tower of a model of images and texts.

    Raises:
        ConfigError: There is neither a folder nor a config, or a setting is unknown.
    """
    from transformers import AutoConfig

    changes = dict(config or {})
    model_type = changes.pop("model_type", None)
    if pretrained is not None:
        settings = load_pretrained(AutoConfig, pretrained)
    elif model_type:
        with config_errors("TransformersVisionEncoder.config"):
            settings = AutoConfig.for_model(model_type)
    else:
        raise ConfigError("TransformersVisionEncoder needs pretrained, or config with a model_type.")
    settings = getattr(settings, "vision_config", None) or settings
    unknown = sorted(set(changes) - set(settings.to_dict()) - set(settings.attribute_map))
    if unknown:
        raise ConfigError(f"TransformersVisionEncoder.config: {type(settings).__name__} has no setting {unknown[0]!r}.")
    if pretrained is None:
        return type(settings)(**changes)
    settings.update(changes)
    return settings


def build_vision_model(pretrained: str | None, settings: Any) -> nn.Module:
    """Build a backbone with the maps that are used, or a vision tower."""
    from transformers import AutoBackbone, AutoModel

    if settings.model_type in TOWERS:
        settings.vision_use_head = False
        if pretrained is None:
            return AutoModel.from_config(settings)
        return load_model(AutoModel, pretrained, settings)
    if not hasattr(settings, "stage_names"):
        raise ConfigError(f"TransformersVisionEncoder: a {settings.model_type} model is no backbone of transformers.")
    # The strides of all stages, measured without weights
    stages = [index for index, name in enumerate(settings.stage_names) if name != "stem"]
    with torch.device("meta"):
        settings.out_indices = stages
        whole = AutoBackbone.from_config(settings).eval()
        maps = whole(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE)).feature_maps
    sizes = [one.shape[-1] for one in maps]
    settings.out_indices = stages[-NUM_STAGES:] if len(set(sizes)) > 1 else stages[-1:]
    if pretrained is None:
        return AutoBackbone.from_config(settings)
    return load_model(type(whole), pretrained, settings)  # AutoBackbone would ask the hub, always


def normalization(pretrained: str) -> dict[str, list[float]]:
    """Return mean and std in 0..255 of a folder's preprocessor_config.json; empty without one."""
    from transformers.utils import cached_file

    try:
        file = cached_file(pretrained, "preprocessor_config.json", local_files_only=not downloads_allowed())
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return {}
    scale = 1 / content.get("rescale_factor", 1 / 255)
    given = {name: content.get(f"image_{name}") for name in ("mean", "std")}
    return {name: [scale * value for value in values] for name, values in given.items() if values}
