"""Masks of the instances that expressions refer to, and the promise that no augmentation takes all of them away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from refseg.datasets.geometry import Size, move_box
from refseg.datasets.masks import MasksAt, Overlap, box_of_segmentation, rasterise
from refseg.datasets.transforms.state import TransformState
from refseg.records import AnnotatedInstance, Expression


def instance_mask(
    instance: AnnotatedInstance,
    original_size: Size,
    matrix: np.ndarray,
    size: Size,
    *,
    overlap: Overlap = "union",
    masks_at: MasksAt = "input",
    content: np.ndarray | None = None,
    must_show: bool = False,
) -> np.ndarray:
    """(h, w) uint8, only where `content` is. An instance too small to cover a pixel's centre gets the one pixel that
    its own centre lies in.

    With `must_show`, so does an instance whose centre lies outside: the nearest pixel. Only an annotation without any
    area then gives an empty mask.
    """
    segmentation = instance.segmentation
    mask = rasterise(segmentation, original_size, matrix, size, overlap=overlap, masks_at=masks_at)
    if content is not None:
        mask &= content
    if np.count_nonzero(mask):
        return mask
    box = box_of_segmentation(segmentation, original_size)
    if box is None:
        return mask
    x0, y0, x1, y1 = move_box(matrix, box)
    column, row = int(np.floor((x0 + x1) / 2)), int(np.floor((y0 + y1) / 2))
    height, width = size
    if must_show:
        column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
    if 0 <= column < width and 0 <= row < height and (must_show or content is None or content[row, column]):
        mask[row, column] = 1
    return mask


def referent_masks(state: TransformState, matrix: np.ndarray, size: Size) -> dict[int, np.ndarray]:
    """Masks (h, w) uint8 of the needed instances, by index, after a further step `matrix` to an image of `size`."""
    record, whole, content = state.record, matrix @ state.matrix, state.content(matrix, size)
    return {
        index: instance_mask(record.instances[index], record.size, whole, size, content=content)
        for index in state.instances
    }


def areas(masks: Mapping[int, np.ndarray]) -> dict[int, int]:
    return {index: int(np.count_nonzero(mask)) for index, mask in masks.items()}


def all_keep_a_referent(
    expressions: Iterable[Expression], before: Mapping[int, int], after: Mapping[int, int], min_visible: float
) -> bool:
    """Whether each expression keeps a referent with at least `min_visible` of its area, and at least one pixel.

    Expressions without referents, or whose referents had no area before, ask for nothing.
    """
    for expression in expressions:
        had = [index for index in expression.referents if before[index]]
        if had and not any(after[index] >= max(1, min_visible * before[index]) for index in had):
            return False
    return True
