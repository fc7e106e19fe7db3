"""LAVT's decoder (section 3.4, eqs. 9 and 10): upsample, join with the next finer level, convolve twice, and again.

Letters: E expressions, C hidden channels, (h, w) the size of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import JoinLevels


class LAVTDecoder(BaseModule):
    """Levels of `level_dims` channels, fine to coarse -> (E, 2, h, w): scores of background and referent.

    All steps have the same width, half of the coarsest level's, as in the published code.
    """

    def __init__(self, level_dims: Sequence[int]) -> None:
        super().__init__()
        hidden = level_dims[-1] // 2
        inputs = [level_dims[-1], *[hidden] * (len(level_dims) - 2)]
        self.steps = nn.ModuleList(
            JoinLevels(coarse, fine, hidden, align_corners=True)
            for coarse, fine in zip(inputs, reversed(level_dims[:-1]), strict=True)
        )
        self.classify = nn.Conv2d(hidden, 2, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        x = levels[-1]
        for step, fine in zip(self.steps, reversed(levels[:-1]), strict=True):
            x = step(x, fine)
        return self.classify(x)
