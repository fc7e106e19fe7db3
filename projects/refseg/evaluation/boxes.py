"""Boxes (x, y, width, height): overlaps, and the matching of generalised comprehension (GREC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def box_iou(a: np.ndarray, b: np.ndarray, *, generalised: bool = False) -> np.ndarray:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4). `generalised`: minus the share of the smallest box
    around both that neither covers (GIoU)."""
    a = np.asarray(a, np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(b, np.float64).reshape(-1, 4)[None]
    a_end, b_end = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    overlap = np.clip(np.minimum(a_end, b_end) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    if not generalised:
        return iou
    hull = (np.maximum(a_end, b_end) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    return iou - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


class Matches(NamedTuple):
    """Boxes that found each other, and how many there were."""

    matched: int
    predicted: int
    target: int

    @property
    def perfect(self) -> bool:
        """F1 = 1; also where neither side has a box."""
        return self.matched == self.predicted == self.target


def match_boxes(predicted: np.ndarray, target: np.ndarray, *, generalised: bool, threshold: float = 0.5) -> Matches:
    """GREC's greedy matching: the pair of the largest overlap first, until it is below the threshold."""
    num_predicted, num_target = len(predicted), len(target)
    if not num_predicted or not num_target:
        return Matches(0, num_predicted, num_target)
    overlap = box_iou(predicted, target, generalised=generalised)
    matched = 0
    for _ in range(min(num_predicted, num_target)):
        row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
        if overlap[row, column] < threshold:
            break
        matched += 1
        overlap[row], overlap[:, column] = -np.inf, -np.inf
    return Matches(matched, num_predicted, num_target)


def with_area(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, 5) of boxes (x, y, width, height, score); one without area is no box."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    return boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)]


def surviving(boxes: Sequence[Sequence[float]], min_score: float) -> np.ndarray:
    """(N, 4) boxes of (x, y, width, height, score) with an area, whose score is at least `min_score`."""
    boxes = with_area(boxes)
    return boxes[boxes[:, 4] >= min_score, :4]


def best_box(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(1, 4), or (0, 4) where there is none: the box of the highest score."""
    boxes = with_area(boxes)
    return boxes[boxes[:, 4].argmax()][None, :4] if len(boxes) else boxes[:, :4]
