"""Image encoders of timm, by name.

Letters: N images, P = h * w pixels of a stage, C channels of that stage.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refseg.errors import CheckpointError, ConfigError, DataError, config_errors
from refseg.models.encoders.official_weights import shown
from refseg.models.encoders.vision import BackboneEncoder, Size, flatten_map, unflatten_map
from refseg.paths import data_path
from refseg.pretrained import PACKAGES, downloads_allowed, installed
from refseg.registry import MODELS
from refseg.weights import by_prefix, inner_state, read_checkpoint

NUM_STAGES = 4
# How architectures are asked to take images of any size; each knows at most one of these
ANY_SIZE: tuple[dict[str, bool], ...] = (dict(dynamic_img_size=True), dict(strict_img_size=False), {})
HEADS = ("head", "fc", "classifier", "pre_logits", "mask_token")  # parts of published files that encoders lack


@MODELS.register_module()
class TimmEncoder(BackboneEncoder):
    """Any model of timm with feature extraction: ConvNeXt, ResNet, EfficientNet, Swin, ViT, DINOv2, EVA, SigLIP, ...

    Most have stages, so that a fusion can work between them. Plain ViTs have one stride and get a `SimplePyramid`.
    Some others (HRNet, Hiera) return several maps, but cannot be run stage by stage.

    Args:
        name: timm's name. `python -c "import timm; print(timm.list_models('*convnext*'))"` lists some.
        pretrained: A file (.pth or .safetensors) with the weights of that model; True for the ones that timm names,
            from the local cache or, if downloads are allowed, from the hub; or "efficientnet_lite0", which comes with
            `refseg[pretrained]`. None is random weights.
        out_indices: Stages that are used, by timm's own count. The default is the last four.
        out_stages: The ones among them that the decoder uses.
        pyramid_dim: Channels of the pyramid's maps.
        drop_path_rate: Drop path rate of the last block, for architectures that have it.
        checkpointing: Recompute parts in the backward pass, which saves memory and costs time.
        frozen: Whether the weights stay as they are, in evaluation mode. The pyramid is trained.
        lora: Settings of `Lora`, such as dict(rank=8): the weights stay, and linear layers get trained additions.
        options: Further arguments of timm's constructor.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool | str | None = None,
        out_indices: Sequence[int] | None = None,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        pyramid_dim: int = 256,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        frozen: bool = False,
        lora: dict | None = None,
        options: dict | None = None,
    ) -> None:
        import timm
        from timm.layers import Conv2dSame, to_2tuple
        from timm.models import EfficientNetFeatures, FeatureListNet, MobileNetV3Features

        check_name(name)
        settings = {**(options or {}), **({"drop_path_rate": drop_path_rate} if drop_path_rate else {})}
        with config_errors(f"TimmEncoder(name={name!r})"):
            # Kind of model, by what timm makes of it to extract features
            with torch.device("meta"):
                features = timm.create_model(name, features_only=True, out_indices=[-1], **settings)
            model, any_size = create(name, settings)
            strides = [stage["reduction"] for stage in getattr(model.feature_info, "info", model.feature_info)]
            if out_indices is None:
                out_indices = range(len(strides))[-NUM_STAGES:] if len(set(strides)) > 1 else [len(strides) - 1]
        cfg = model.pretrained_cfg
        if pretrained:
            load_timm(model, name, pretrained)
        staged = isinstance(features, FeatureListNet | EfficientNetFeatures | MobileNetV3Features)
        self._channels_last = str(getattr(model, "output_fmt", "")).endswith("NHWC")
        if staged:
            # Modules in the order in which they run, and the ones after which a stage ends
            nested = any("." in stage["module"] for stage in features.feature_info.info)
            model = FeatureListNet(model, out_indices=tuple(out_indices), flatten_sequential=nested)
            names = list(model)
            ends = [1 + names.index(last) for last in model.return_layers]
            self._parts = [names[start:end] for start, end in pairwise([0, *ends])]
        else:
            self._normed = len(set(strides)) == 1  # the model's last norm, which is for its last map
            self._indices = model.prune_intermediate_layers(
                list(out_indices), prune_norm=not self._normed, prune_head=True
            )
            if checkpointing:
                model.set_grad_checkpointing(True)
        for module in model.modules():
            if type(module) is Conv2dSame:
                module.__class__ = SameConv2d
        self.name, self.checkpointing, self.staged = name, checkpointing, staged
        attends = any("attn" in name or "attention" in name for name, _ in model.named_modules())
        if attends or len(set(strides)) == 1 or self._channels_last:
            self.one_size = f"{name} has attention, whose positions or windows are laid out for one image size."
        # Size of the position tables, of architectures that do not adapt them to the image
        self.fixed_size = None if any_size else to_2tuple(settings.get("img_size", cfg["input_size"][1:]))
        super().__init__(
            backbone=model,
            out_stages=out_stages,
            pyramid_dim=pyramid_dim,
            frozen=frozen,
            lora=lora,
            probe_size=self.fixed_size,
        )
        self.mean, self.std = (tuple(255 * value for value in cfg[key]) for key in ("mean", "std"))

    @staticmethod
    def describe(config: Mapping[str, Any]) -> str:
        """Describe `pretrained` without reading weights, or raise an error as building would."""
        check_name(config["name"])
        file = weights_file(config["name"], config["pretrained"])
        return f"{file}: {file.stat().st_size / 2**20:,.0f} MiB"

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        try:
            return self._maps(images)
        except (AssertionError, RuntimeError) as error:
            size = tuple(images.shape[-2:])
            if self.fixed_size in (size, None) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"{self.name} does not take images of this size, {size}: {str(error).rstrip('.')}. Set "
                f"encoder.vision.options=dict(img_size={size}), or a size that it takes; position tables are resized "
                "when weights are read."
            ) from None

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        if not hasattr(self, "_parts"):
            return self.backbone.forward_intermediates(
                images, indices=self._indices, norm=self._normed, output_fmt="NCHW", intermediates_only=True
            )
        maps = [self._run(0, images)]
        for stage in range(1, len(self._parts)):
            maps.append(self._run(stage, maps[-1]))
        return [one.permute(0, 3, 1, 2) if self._channels_last else one for one in maps]

    # timm has the downsampling at the start of a stage, so `downsample` runs the whole next stage
    def embed(self, images: Tensor) -> tuple[Tensor, Size]:
        return self._flatten(self._run(0, images))

    def run_stage(self, stage: int, pixels: Tensor, size: Size) -> Tensor:
        return pixels

    def downsample(self, stage: int, pixels: Tensor, size: Size) -> tuple[Tensor, Size]:
        x = pixels.unflatten(1, size) if self._channels_last else unflatten_map(pixels, size)
        return self._flatten(self._run(stage + 1, x))

    def _run(self, stage: int, x: Tensor) -> Tensor:
        """Run the modules of a stage, on timm's own order of dimensions."""

        def run(x: Tensor) -> Tensor:
            for name in self._parts[stage]:
                x = self.backbone[name](x)
            return x

        # As a whole, since modules change each other's outputs in place. The image has no gradient
        return checkpoint(run, x, use_reentrant=False) if self.checkpointing and x.requires_grad else run(x)

    def _flatten(self, x: Tensor) -> tuple[Tensor, Size]:
        return (x.flatten(1, 2), (x.shape[1], x.shape[2])) if self._channels_last else flatten_map(x)


class SameConv2d(nn.Conv2d):
    """timm's `Conv2dSame`, a convolution with TensorFlow's padding, by integers alone.

    timm divides floats, which exporters can hardly follow for images of any size.
    """

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        for side, kernel, stride, dilation in sides:
            total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            padding = [total // 2, total - total // 2, *padding]  # the last dimension comes first
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def check_name(name: str) -> None:
    """Raise a ConfigError for a name that timm does not have."""
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
        raise ConfigError(f"TimmEncoder: timm {timm.__version__} has no model {name!r}. {hint}")


def create(name: str, settings: dict) -> tuple[nn.Module, bool]:
    """Build a timm model without classifier, and say whether its position tables adapt to any image size."""
    import timm

    for size in ANY_SIZE:
        try:
            return timm.create_model(name, num_classes=0, **{**size, **settings}), bool(size)
        except TypeError as error:
            if not any(key in str(error) for key in size):
                raise
    raise AssertionError("the last entry of ANY_SIZE is empty")


def weights_file(name: str, pretrained: bool | str) -> Path:
    """Return the file of a model's weights, or raise an error that says where to get it.

    Args:
        name: timm's name.
        pretrained: As for `TimmEncoder`; neither None nor False.
    """
    import timm
    from huggingface_hub import hf_hub_download

    if isinstance(pretrained, str):
        file = installed(pretrained) or data_path(pretrained)
        if not file.is_file():
            raise CheckpointError(
                f"no weights of {name} at {file}. Set pretrained=True for the ones of timm, None for random weights."
            )
        return file
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise ConfigError(f"timm has no weights of {name} on the hub. Set pretrained to a file, or to None.")
    file_name = cfg.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(cfg.hf_hub_id, file_name, local_files_only=not downloads_allowed()))
    except (OSError, ValueError) as error:
        raise DataError(
            f"timm's weights of {name} are not in the local cache. Download them once with `hf download "
            f"{cfg.hf_hub_id} {file_name}`, or allow it here with --allow-download (REFSEG_ALLOW_DOWNLOAD=1), or set "
            f"pretrained to a file. (huggingface_hub: {str(error).splitlines()[0][:150]})"
        ) from None


def load_timm(model: nn.Module, name: str, pretrained: bool | str) -> None:
    """Load weights into a timm model without classifier, and log what was read. Every tensor is accounted for.

    timm converts the names of other publications that it knows (DINOv2, CLIP, BEiT), and resizes position tables.

    Raises:
        CheckpointError: There is no such file, or its weights do not fit.
    """
    file = weights_file(name, pretrained)
    state = dict(inner_state(read_checkpoint(file)))
    expected = model.state_dict()
    if pretrained in PACKAGES:  # the same tensors in the same order, under other names
        state = dict(zip(expected, state.values(), strict=False))
    else:
        source = sys.modules[type(model).__module__]
        convert = getattr(source, "checkpoint_filter_fn", None) or getattr(source, "_filter_fn", None)
        if convert is not None:
            with config_errors(f"{file}"):
                state = convert(state, model)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (*((classifier,) if isinstance(classifier, str) else classifier), *HEADS)
    unused = [key for key in state if key not in expected and key.startswith(heads)]
    for problem, names in (
        ("missing", [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]),
        ("unexpected", [key for key in state if key not in expected and key not in unused]),
        ("of another shape", [k for k in expected if k in state and state[k].shape != expected[k].shape]),
    ):
        if names:
            raise CheckpointError(
                f"{file} has weights of another model than {name}: {len(names)} {problem}: {shown(names)}."
            )
    model.load_state_dict({key: value for key, value in state.items() if key in expected}, strict=False)
    note = f"; {len(unused)} of the file not used: {by_prefix(unused, state)}" if unused else ""
    print_log(f"{name}: {len(expected)} tensors loaded from {file}{note}", logger="current")
