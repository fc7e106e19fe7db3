"""ReLA's minimap: which regions the target lies in. Two readings of its label.

Letters: E expressions, (H, W) the masks' size, n regions per side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

MinimapTarget = Literal["truncated", "covered"]


def truncated_minimap(masks: Tensor, side: int) -> Tensor:
    """Masks (E, H, W) -> (E, n * n) bool: a quirk of the published code, which samples the mask bilinearly in the
    middle of each region and cuts what is below 1 down to 0. So a region counts if all pixels around its middle (four,
    where its sides are even) are mask.

    What is outside is sampled, and asked for being 0: sums of zeros are exact, and sums of weights are not always 1.
    """
    outside = F.interpolate((~masks)[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
    return outside.flatten(1) == 0


def covered_minimap(masks: Tensor, side: int) -> Tensor:
    """Masks (E, H, W) -> (E, n * n) bool: at least half of the region is mask, as labels seem meant to be."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), (side, side)).flatten(1) >= 0.5


MINIMAPS: dict[str, Callable[[Tensor, int], Tensor]] = {"truncated": truncated_minimap, "covered": covered_minimap}
