"""Feature maps of several sizes as one sequence of pixels, and masks of padding at their sizes.

Letters: E rows, C channels, (h, w) a level's size, S pixels of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def level_mask(pixel_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (N, H, W) of the input at a level's size, (N, h, w) bool: a place counts if its first pixel is image."""
    if not pixel_mask.shape[-2] % size[0] and not pixel_mask.shape[-1] % size[1]:
        return pixel_mask[:, :: pixel_mask.shape[-2] // size[0], :: pixel_mask.shape[-1] // size[1]]
    return F.interpolate(pixel_mask[:, None].float(), size=size, mode="nearest")[:, 0] > 0


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """(E, C, h, w) each -> (E, S, C), each level line by line."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)


def split_levels(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(E, S, C) -> (E, C, h, w) each: the inverse of `flatten_levels`."""
    parts = pixels.split([height * width for height, width in sizes], 1)
    return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
