"""The contract of image encoders, and the adapter for backbones of other libraries.

Letters: N images, P = h * w pixels of a stage, C channels of that stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.compat import keep_weights
from refseg.errors import ConfigError, config_errors
from refseg.lora import Lora, add_lora, keep_statistics
from refseg.models.preprocessor import IMAGENET_MEAN, IMAGENET_STD
from refseg.registry import MODELS

Size = tuple[int, int]
PROBE_SIDE = 224  # a multiple of the usual patches (14, 16) and strides (up to 32)


class VisionEncoder(BaseModule):
    """Base class of image encoders: images (N, 3, H, W) -> maps (N, C, h, w), fine to coarse.

    A subclass sets `dims`, `strides` and `out_stages`, and defines `forward`. A *staged* encoder instead defines
    `embed`, `run_stage`, `downsample` and, if its outputs have norms, `norm`: then a fusion can work between its stages
    (PWAM, VLBA, StagedCrossAttention). Any other encoder works without fusion, and with fusion after its last stage.

    Attributes:
        staged: Whether the stage methods are there.
        dims: Channels of each stage.
        strides: Pixels of the image per pixel of the map, for each stage.
        out_stages: Stages whose maps `forward` returns, in ascending order.
        mean, std: Of the images that the weights expect, per channel, in 0..255. The data preprocessor follows them.
        one_size: Why a graph of the encoder (`refseg export`) takes images of one size only. Empty: it takes any.
    """

    staged: bool = False
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    out_stages: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    one_size: str = ""

    @property
    def num_stages(self) -> int:
        return len(self.dims)

    def set_stages(self, dims: Sequence[int], strides: Sequence[int], out_stages: Sequence[int]) -> None:
        """Set what decoders need to know, after a check."""
        self.dims, self.strides, self.out_stages = tuple(dims), tuple(strides), tuple(sorted(out_stages))
        if not self.out_stages or not set(self.out_stages) <= set(range(len(self.dims))):
            raise ConfigError(
                f"out_stages {tuple(out_stages)} must be stages of {type(self).__name__}, which has {len(self.dims)} "
                f"here (strides {', '.join(map(str, self.strides))})."
            )

    def embed(self, images: Tensor) -> tuple[Tensor, Size]:
        """Images (N, 3, H, W) -> pixels (N, P, C) of stage 0, and their (h, w)."""
        raise NotImplementedError

    def run_stage(self, stage: int, pixels: Tensor, size: Size) -> Tensor:
        """Run a stage: (N, P, C) -> (N, P, C)."""
        raise NotImplementedError

    def downsample(self, stage: int, pixels: Tensor, size: Size) -> tuple[Tensor, Size]:
        """Pixels of a stage -> pixels of the next one, and their (h, w). Not after the last stage."""
        raise NotImplementedError

    def norm(self, stage: int, pixels: Tensor) -> Tensor:
        """Apply the output norm of one of `out_stages`: (N, P, C) -> (N, P, C)."""
        return pixels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) -> maps (N, C, h, w) of `out_stages`."""
        pixels, size = self.embed(images)
        maps = []
        for stage in range(self.out_stages[-1] + 1):
            if stage > 0:
                pixels, size = self.downsample(stage - 1, pixels, size)
            pixels = self.run_stage(stage, pixels, size)
            if stage in self.out_stages:
                maps.append(self.norm(stage, pixels).transpose(1, 2).unflatten(2, size))
        return maps


def flatten_map(maps: Tensor) -> tuple[Tensor, Size]:
    """Maps (N, C, h, w) -> pixels (N, P, C), and (h, w)."""
    return maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1])


def unflatten_map(pixels: Tensor, size: Size) -> Tensor:
    """Pixels (N, P, C) -> maps (N, C, h, w), channels last in memory."""
    return pixels.transpose(1, 2).unflatten(2, size)


def freeze_unused(model: nn.Module, outputs: Sequence[Tensor]) -> None:
    """Freeze parameters that outputs do not depend on: distributed training fails on ones without gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained:
        sums = [output.sum() for output in outputs if output.requires_grad]
        grads = torch.autograd.grad(sums, trained, allow_unused=True)
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.requires_grad_(grad is not None)


class SimplePyramid(nn.Module):
    """Four maps from the only map of a plain ViT (Li et al. 2022, "Exploring Plain Vision Transformer Backbones", 3).

    Strides are a quarter, half, one and two times that of the input. Each map ends in a 1x1 and a 3x3 convolution with
    norms of the channels, as in the paper. A layer of stride-2 pooling makes the last one.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        half = max(dim // 2, 1)
        quarter = max(dim // 4, 1)
        up = nn.Sequential(nn.ConvTranspose2d(dim, half, 2, 2), ChannelNorm(half), nn.GELU())
        self.scales = nn.ModuleList(
            [
                nn.Sequential(up, nn.ConvTranspose2d(half, quarter, 2, 2)),
                nn.ConvTranspose2d(dim, half, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_dim, 1, bias=False),
                ChannelNorm(out_dim),
                nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
                ChannelNorm(out_dim),
            )
            for width in (quarter, half, dim, dim)
        )

    def forward(self, maps: Tensor) -> list[Tensor]:
        return [output(scale(maps)) for scale, output in zip(self.scales, self.outputs, strict=True)]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (N, C, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class BackboneEncoder(VisionEncoder):
    """A backbone that maps images to one map or several: any registered one of mmdet or mmseg, and a base class.

    `FusedEncoder` wraps such a backbone by itself, so that `vision=dict(type='mmdet.ResNet', depth=50)` is enough. A
    single map, as of a plain ViT, becomes four by a `SimplePyramid`.

    Args:
        backbone: Config of a registered module, or a module.
        out_stages: Maps that the decoder uses, by their place in what the backbone returns.
        pyramid_dim: Channels of the pyramid's maps.
        frozen: Whether the backbone stays as it is, in evaluation mode. The pyramid is trained.
        lora: Settings of `Lora`: the backbone stays, and its linear layers get trained additions.
        probe_size: (height, width) of the blank image by which channels and strides are found.
    """

    config_groups: ClassVar[dict[str, type]] = {"lora": Lora}

    def __init__(
        self,
        *,
        backbone: Any,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        pyramid_dim: int = 256,
        frozen: bool = False,
        lora: dict | None = None,
        probe_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        with config_errors("encoder.vision"):
            built = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        # mmengine initializes a backbone of its own kind (`init_cfg`); weights of others must stay
        self.backbone = built if isinstance(built, BaseModule) else keep_weights(built)
        self.frozen, self.lora = frozen, lora
        if frozen:
            self.backbone.requires_grad_(False)
        if lora is not None:
            if isinstance(built, BaseModule):
                raise ConfigError(f"{type(built).__name__}: lora is for models of timm and transformers. Remove it.")
            owner = f"{type(self).__name__} {getattr(self, 'name', type(built).__name__)}"
            add_lora(self.backbone, lora, owner=owner, frozen=frozen)
        maps, dims, strides = self.probe(*(probe_size or (PROBE_SIDE, PROBE_SIDE)))
        # A patch of 14 pixels gives no stride that other parts could divide: images are made smaller by 14 / 16
        self.scale = 1.0
        if len(dims) == 1:
            (dim,), (stride,) = dims, strides
            power = 2 ** (stride - 1).bit_length()
            self.scale = stride / power
            self.pyramid = SimplePyramid(dim, pyramid_dim)
            maps = self.pyramid(maps[0])
            dims, strides = [pyramid_dim] * 4, [power // 4, power // 2, power, 2 * power]
        self.set_stages(dims, strides, out_stages)
        # Parts for maps that nothing uses, and DINOv2's mask token; a fusion between stages can use any map
        freeze_unused(self, maps if self.staged else [maps[stage] for stage in self.out_stages])
        self.train()

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Return the maps of the backbone."""
        return self.backbone(images)

    def probe(self, height: int, width: int) -> tuple[Sequence[Tensor], list[int], list[int]]:
        """Return the maps of a blank image in evaluation mode, their channels and their strides.

        Strides of several maps are powers of two, which rounded sizes hide: LeViT's last map of 224 pixels has 4, at
        stride 64.
        """
        self.backbone.eval()
        maps = self.maps(torch.zeros(1, 3, height, width))
        strides = [width / one.shape[-1] for one in maps]
        strides = [2 ** round(log2(stride)) if len(maps) > 1 else round(stride) for stride in strides]
        return maps, [one.shape[1] for one in maps], strides

    def train(self, mode: bool = True) -> BackboneEncoder:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        if self.lora is not None:
            keep_statistics(self.backbone)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.scale != 1:
            size = [round(side * self.scale) for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        maps = self.maps(images)
        if len(maps) == 1:
            maps = self.pyramid(maps[0])
        return [maps[stage] for stage in self.out_stages]
