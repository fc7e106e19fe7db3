"""A small convolutional encoder with Swin's stage API, for training from random weights on small images (RefShapes).

Letters: N images, P = h * w pixels of a stage, C channels of that stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.encoders.vision import VisionEncoder, flatten_map, unflatten_map
from refseg.models.layers import ResidualBlock, pixel_centers, waves
from refseg.registry import MODELS


@MODELS.register_module()
class ConvEncoder(VisionEncoder):
    """Residual blocks in four stages, each at half the resolution of the previous one.

    Each stage adds a linear projection of waves over the image (four wavelengths), so that features know their
    position. Decoders with learnable queries add positions only to attention keys, not to values. Without the waves,
    they would need long training or a pretrained encoder to find "the leftmost" or to separate equal shapes.

    Args:
        dims: Channels of the stages.
        depths: Residual blocks of the stages.
        stride: Stride of the first stage; 2 keeps more detail than Swin's 4.
        out_stages: Stages that the decoder uses.
    """

    staged = True

    def __init__(
        self,
        *,
        dims: Sequence[int] = (32, 64, 128, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        stride: int = 2,
        out_stages: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        if len(dims) != len(depths):
            raise ConfigError(f"ConvEncoder: dims {dims} and depths {depths} must have the same length.")
        self.set_stages(dims, [stride * 2**stage for stage in range(len(dims))], out_stages)
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
        return flatten_map(self.stem(images))

    def run_stage(self, stage: int, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Run the blocks of one stage: (N, P, C) -> (N, P, C)."""
        pixels = flatten_map(self.stages[stage](unflatten_map(pixels, size)))[0]
        return pixels + self.positions[stage](waves(pixel_centers([size], pixels.device)).to(pixels.dtype))

    def downsample(self, stage: int, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Pixels (N, P, C) of a stage -> (N, P / 4, C) of the next one, and their (h, w). Not after the last stage."""
        return flatten_map(self.downsamples[stage](unflatten_map(pixels, size)))
