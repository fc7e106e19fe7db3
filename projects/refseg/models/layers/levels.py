"""Feature levels: flatten and split them, bring masks to their sizes, encode positions of their pixels.

Letters: E rows, C channels, (h, w) the size of a level, S pixels of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def level_mask(pixel_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a bool mask (N, H, W) of the input to (N, h, w) by taking the first pixel of each cell."""
    if not pixel_mask.shape[-2] % size[0] and not pixel_mask.shape[-1] % size[1]:
        return pixel_mask[:, :: pixel_mask.shape[-2] // size[0], :: pixel_mask.shape[-1] // size[1]]
    return F.interpolate(pixel_mask[:, None].float(), size=size, mode="nearest")[:, 0] > 0


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Levels (E, C, h, w) -> pixels (E, S, C), row by row."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)


def split_levels(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Pixels (E, S, C) -> levels (E, C, h, w): the inverse of `flatten_levels`."""
    chunks = pixels.split([height * width for height, width in sizes], 1)
    return [chunk.transpose(1, 2).unflatten(2, size) for chunk, size in zip(chunks, sizes, strict=True)]


def sine_position(mask: Tensor, dim: int, *, temperature: float = 10000.0, eps: float = 1e-6) -> Tensor:
    """Return DETR's 2D sine positions (E, h w, C) for a mask (E, h, w) that is True on the image.

    Half of the channels encode y, half x, both scaled to 0..2 pi over the image without its padding.
    """
    if dim % 4:
        raise ValueError(f"Sine positions need a multiple of 4 channels, not {dim}.")
    ones = mask.float()
    parts = []
    for axis in (1, 2):
        position = ones.cumsum(axis)
        position = position / (position.narrow(axis, position.shape[axis] - 1, 1) + eps) * (2 * math.pi)
        rate = temperature ** (torch.arange(dim // 4, device=mask.device) * (4 / dim))
        angle = position[..., None] / rate  # (E, h, w, C/4)
        parts.append(torch.stack([angle.sin(), angle.cos()], -1).flatten(-2))
    return torch.cat(parts, -1).flatten(1, 2)


def waves(centers: Tensor) -> Tensor:
    """Encode points (P, 2) in 0..1 as sines and cosines with 0.5 to 4 periods over the image: (P, 16)."""
    angle = centers[..., None] * (math.pi * 2.0 ** torch.arange(4, device=centers.device))  # (P, 2, 4)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)


def pixel_centers(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the center (x, y) of every pixel of every level, in 0..1 over the level: (S, 2)."""
    centers = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centers.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(centers)
