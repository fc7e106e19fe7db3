"""LAVT's decoder (section 3.4, eqs. 9 and 10): upsample, join with the next finer level, convolve twice, and again.

Letters: E expressions, C hidden channels, (h, w) the size of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn


class Step(nn.Module):
    """Eq. 9: twice a 3x3 convolution, BatchNorm, ReLU, on the upsampled coarser map joined with the finer level."""

    def __init__(self, coarse_dim: int, fine_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(coarse_dim + fine_dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_dim)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        x = torch.cat([coarse, fine], 1)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class LAVTDecoder(BaseModule):
    """Levels of `level_dims` channels, fine to coarse -> (E, 2, h, w): scores of background and referent.

    All steps have the same width, half of the coarsest level's, as in the published code.
    """

    def __init__(self, level_dims: Sequence[int]) -> None:
        super().__init__()
        hidden = level_dims[-1] // 2
        inputs = [level_dims[-1], *[hidden] * (len(level_dims) - 2)]
        self.steps = nn.ModuleList(
            Step(coarse, fine, hidden) for coarse, fine in zip(inputs, reversed(level_dims[:-1]), strict=True)
        )
        self.classify = nn.Conv2d(hidden, 2, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        x = levels[-1]
        for step, fine in zip(self.steps, reversed(levels[:-1]), strict=True):
            x = step(x, fine)
        return self.classify(x)
