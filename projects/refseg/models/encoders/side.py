"""A pretrained encoder with a small one beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.encoders.vision import VisionEncoder
from refseg.registry import MODELS


@MODELS.register_module()
class SideEncoder(VisionEncoder):
    """Two image encoders of the same strides, whose maps are concatenated ("side-tuning", Zhang et al. 2020).

    A frozen, pretrained encoder knows colors, textures and kinds from the first step on. A small trained one beside it
    learns what that does not show, such as the place in the image, which `ConvEncoder` adds to its features.

    Args:
        main: The pretrained encoder.
        side: The small encoder.
        side_scale: Factor of the small encoder's maps. Features of pretrained networks can be several times as large
            as those of a network with norms (EfficientNet-Lite0's have a standard deviation of 5 to 8).
        out_stages: Stages that the decoder uses, of both.
    """

    def __init__(
        self, *, main: dict, side: dict, side_scale: float = 5.0, out_stages: Sequence[int] = (0, 1, 2, 3)
    ) -> None:
        super().__init__()
        self.main: VisionEncoder = MODELS.build({**main, "out_stages": tuple(out_stages)})
        self.side: VisionEncoder = MODELS.build({**side, "out_stages": tuple(out_stages)})
        if self.main.strides != self.side.strides:
            raise ConfigError(f"SideEncoder: main has strides {self.main.strides}, and side {self.side.strides}.")
        dims = [main_dim + side_dim for main_dim, side_dim in zip(self.main.dims, self.side.dims, strict=True)]
        self.set_stages(dims, self.main.strides, out_stages)
        self.side_scale = side_scale
        self.mean, self.std = self.main.mean, self.main.std

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = zip(self.main(images), self.side(images), strict=True)
        return [torch.cat([main, self.side_scale * side], 1) for main, side in maps]
