"""Masks compared at points instead of pixels (PointRend, Kirillov et al. 2020; Mask2Former, section 3.3).

Letters: R maps, C channels, P points, (h, w) the maps' size. Points are (x, y) in 0..1 over a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (R, C, h, w) read bilinearly at points (R, P, 2) -> (R, C, P)."""
    return F.grid_sample(maps, points[:, :, None] * 2 - 1, mode="bilinear", align_corners=False)[..., 0]


def random_points(extent: Tensor, num_points: int) -> Tensor:
    """(R, P, 2), uniform over the part of each map that is image: extent (R, 2), its width and height in 0..1."""
    return torch.rand(len(extent), num_points, 2, device=extent.device) * extent[:, None]


def uncertain_points(
    mask_logits: Tensor, extent: Tensor, num_points: int, *, oversample: float = 3.0, share: float = 0.75
) -> Tensor:
    """(R, P, 2): a `share` of the points are, among `oversample` times as many random ones, those where the logits
    (R, 1, h, w) are nearest to 0; the rest are random."""
    candidates = random_points(extent, int(num_points * oversample))
    uncertainty = -sample_points(mask_logits, candidates)[:, 0].abs()
    chosen = uncertainty.topk(int(num_points * share), 1).indices
    rest = random_points(extent, num_points - chosen.shape[1])
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), rest], 1)
