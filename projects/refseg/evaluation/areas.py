"""Pixels of masks, counted on run lengths without decoding, or on arrays. All sums are Python ints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask


class Areas(NamedTuple):
    """Pixels of the intersection, of the predicted mask, and of the target."""

    intersection: int
    predicted: int
    target: int

    @property
    def union(self) -> int:
        return self.predicted + self.target - self.intersection


def areas_of_rles(predicted: dict, target: dict) -> Areas:
    """Both compressed, of the same size."""
    if list(predicted["size"]) != list(target["size"]):
        raise ValueError(f"predicted mask of size {predicted['size']}, target of size {target['size']}")
    both = coco_mask.merge([predicted, target], intersect=True)
    return Areas(*(int(area) for area in coco_mask.area([both, predicted, target])))


def areas_of_masks(predicted: np.ndarray, target: np.ndarray) -> Areas:
    """Both (h, w) bool."""
    if predicted.shape != target.shape:
        raise ValueError(f"predicted mask {predicted.shape}, target {target.shape}")
    counts = (np.count_nonzero(predicted & target), np.count_nonzero(predicted), np.count_nonzero(target))
    return Areas(*(int(count) for count in counts))


def union_rle(rles: Sequence[dict], size: tuple[int, int]) -> dict:
    """The union of compressed RLEs; of none, the empty mask."""
    if not rles:
        return coco_mask.encode(np.zeros(size, np.uint8, order="F"))
    return rles[0] if len(rles) == 1 else coco_mask.merge(list(rles))
