"""Convolutional blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut; `stride` is of the first one."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_dim)
        changes = stride != 1 or in_dim != out_dim
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class JoinLevels(nn.Module):
    """Upsample the coarse map, concatenate the fine one, and apply two 3x3 convolutions with BatchNorm (LAVT, eq. 9).

    Args:
        coarse_dim, fine_dim, out_dim: Channels of the inputs and of the output.
        align_corners: Passed to the upsampling. LAVT's published code sets True.
    """

    def __init__(self, coarse_dim: int, fine_dim: int, out_dim: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.conv1 = nn.Conv2d(coarse_dim + fine_dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_dim)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        x = torch.cat([coarse, fine], 1)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


def upsampler(in_dim: int, out_dim: int, scale: int) -> nn.Module:
    """Return a module that upsamples maps (E, C, h, w) by `scale`, a power of two.

    It stacks transposed 2x2 convolutions with LayerNorm and GELU between them. Each input pixel becomes its own output
    pixels, so padding does not leak into the content. At scale 1 it is a 1x1 convolution, or the identity if the number
    of channels stays the same.
    """
    doublings = scale.bit_length() - 1
    if not doublings:
        return nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)
    from timm.layers import LayerNorm2d  # here, because it imports torch.compile, which takes more than a second

    layers: list[nn.Module] = []
    for number in range(doublings):
        layers += [LayerNorm2d(out_dim), nn.GELU()] * (number > 0)
        layers.append(nn.ConvTranspose2d(out_dim if number else in_dim, out_dim, 2, 2))
    return nn.Sequential(*layers)
