"""A small convolutional network with Swin's stage API, for training from random weights on small images (RefShapes).

Letters: N images, P = h * w places of a stage, C channels of that stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.layers import ResidualBlock, pixel_centers, waves
from refseg.registry import MODELS


@MODELS.register_module()
class ConvEncoder(BaseModule):
    """Residual blocks in four stages, each at half the resolution of the one before.

    Places know where they are: waves over the image, of four lengths, are added by a linear layer per stage. Decoders
    with learnable queries add positions to what is compared and not to what is read, and so leave it to long training,
    or to a pretrained encoder, that "the leftmost" can be told, and like shapes told apart.

    Args:
        dims: channels of the stages.
        depths: residual blocks of the stages.
        stride: of the first stage; 2 keeps more detail than Swin's 4.
        out_stages: the stages that are read.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (32, 64, 128, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        stride: int = 2,
        out_stages: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        if len(dims) != len(depths) or not set(out_stages) <= set(range(len(dims))):
            raise ConfigError(
                f"ConvEncoder: dims {dims}, depths {depths} and out_stages {out_stages} do not fit together"
            )
        self.num_stages, self.dims, self.out_stages = len(dims), tuple(dims), tuple(sorted(out_stages))
        self.strides = tuple(stride * 2**stage for stage in range(len(dims)))
        self.stem = nn.Sequential(
            nn.Conv2d(3, dims[0], 3, stride, 1, bias=False), nn.BatchNorm2d(dims[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(dim, dim, 1) for _ in range(depth)])
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.positions = nn.ModuleList(nn.Linear(16, dim) for dim in dims)
        self.downsamples = nn.ModuleList(ResidualBlock(dims[i], dims[i + 1], 2) for i in range(len(dims) - 1))

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (N, 3, H, W) -> (N, P, C) of stage 0, and their (h, w)."""
        return self._places(self.stem(images))

    def run_stage(self, stage: int, places: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, P, C) -> (N, P, C) through the blocks of one stage."""
        places = self._places(self.stages[stage](self._maps(places, size)))[0]
        return places + self.positions[stage](waves(pixel_centers([size], places.device)).to(places.dtype))

    def downsample(self, stage: int, places: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """(N, P, C) of a stage -> (N, P / 4, C) of the next, and their (h, w); not after the last stage."""
        return self._places(self.downsamples[stage](self._maps(places, size)))

    def norm(self, stage: int, places: Tensor) -> Tensor:
        """The blocks end in a norm each; nothing more is done to what is given away."""
        return places

    @staticmethod
    def _maps(places: Tensor, size: tuple[int, int]) -> Tensor:
        return places.transpose(1, 2).unflatten(2, size)  # (N, C, h, w), channels last in memory

    @staticmethod
    def _places(maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1])
