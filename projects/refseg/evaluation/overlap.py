"""Overlap of masks and of boxes: shared pixels, IoU, the box matching of generalized comprehension (GREC), and the
instance matching of SA-Co.

Boxes are (x, y, width, height), or (x, y, width, height, score) where a function says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

# Masks ----------------------------------------------------------------------------------------------------------------


class MaskAreas(NamedTuple):
    """Pixel counts, as Python ints, of the intersection, the predicted mask and the target."""

    intersection: int
    predicted: int
    target: int

    @property
    def union(self) -> int:
        return self.predicted + self.target - self.intersection


def areas_of_rles(predicted: dict, target: dict, ignored: dict | None = None) -> MaskAreas:
    """Count the pixels of two compressed RLEs of the same size without decoding them, outside of an ignored region."""
    if predicted["size"] != target["size"] and tuple(predicted["size"]) != tuple(target["size"]):
        raise ValueError(f"predicted mask of size {predicted['size']}, target of size {target['size']}")
    parts = [coco_mask.merge([predicted, target], intersect=True), predicted, target]
    areas = coco_mask.area(parts)  # unsigned; a part of a mask is never larger than the mask
    if ignored is not None:
        areas -= coco_mask.area([coco_mask.merge([part, ignored], intersect=True) for part in parts])
    return MaskAreas(*areas.tolist())


def union_rle(rles: Sequence[dict], size: tuple[int, int]) -> dict:
    """Merge compressed RLEs. Without any, return the empty mask of `size` (height, width)."""
    if not rles:
        return coco_mask.encode(np.zeros(size, np.uint8, order="F"))
    return rles[0] if len(rles) == 1 else coco_mask.merge(list(rles))


def match_instances(predicted: Sequence[dict], target: Sequence[dict], thresholds: Sequence[float]) -> tuple[int, ...]:
    """Match RLEs of one size one to one, so that the sum of their IoUs is largest (Hungarian matching).

    Returns:
        The number of matches of at least that IoU, for each threshold.
    """
    if not predicted or not target:
        return (0,) * len(thresholds)
    from scipy.optimize import linear_sum_assignment

    iou = coco_mask.iou(list(predicted), list(target), [0] * len(target))  # (N, M)
    found = iou[linear_sum_assignment(-iou)]
    return tuple(int((found >= threshold).sum()) for threshold in thresholds)


def without_duplicates(rles: Sequence[dict], max_iou: float) -> list[dict]:
    """Leave out RLEs of one size whose IoU with a larger one that stays is above `max_iou`. The largest comes first."""
    ordered = sorted(rles, key=coco_mask.area, reverse=True)
    stay: list[int] = []
    iou = coco_mask.iou(ordered, ordered, [0] * len(ordered)) if ordered else np.zeros((0, 0))
    for index in range(len(ordered)):
        if not (iou[index, stay] > max_iou).any():
            stay.append(index)
    return [ordered[index] for index in stay]


# Boxes ----------------------------------------------------------------------------------------------------------------


def box_iou(a: np.ndarray, b: np.ndarray, *, generalized: bool = False) -> np.ndarray:
    """Return the (N, M) IoU of boxes (N, 4) and (M, 4).

    Args:
        generalized: Subtract the share of the smallest enclosing box that neither box covers (GIoU).
    """
    a = np.asarray(a, np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(b, np.float64).reshape(-1, 4)[None]
    a_end, b_end = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    overlap = np.clip(np.minimum(a_end, b_end) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    if not generalized:
        return iou
    hull = (np.maximum(a_end, b_end) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    return iou - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


class BoxMatches(NamedTuple):
    """Numbers of matched, predicted and target boxes."""

    matched: int
    predicted: int
    target: int


def match_boxes(predicted: np.ndarray, target: np.ndarray, *, generalized: bool, threshold: float = 0.5) -> BoxMatches:
    """Match boxes (N, 4) and (M, 4) greedily as GREC does: the largest overlap first, down to the threshold."""
    overlap = box_iou(predicted, target, generalized=generalized)
    matched = 0
    for _ in range(min(overlap.shape)):
        row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
        if overlap[row, column] < threshold:
            break
        matched += 1
        overlap[row], overlap[:, column] = -np.inf, -np.inf
    return BoxMatches(matched, len(predicted), len(target))


def with_area(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the scored boxes that have an area, (N, 5). The others count as no box."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    return boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)]


def select_boxes(boxes: Sequence[Sequence[float]], min_score: float | None) -> np.ndarray:
    """Return (N, 4): the scored boxes with at least `min_score`, or, for None, only the one with the highest score."""
    boxes = with_area(boxes)
    if min_score is not None:
        return boxes[boxes[:, 4] >= min_score, :4]
    return boxes[boxes[:, 4].argmax()][None, :4] if len(boxes) else boxes[:, :4]
