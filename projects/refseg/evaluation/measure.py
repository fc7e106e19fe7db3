"""One expression, its answer and its ground truth -> a row, on a view's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from pycocotools import mask as coco_mask

from refseg.datasets.masks import Overlap, to_rle
from refseg.datasets.readers.checks import decode_runs
from refseg.errors import DataError
from refseg.evaluation.areas import areas_of_rles, union_rle
from refseg.evaluation.boxes import Matches, best_box, match_boxes, surviving
from refseg.evaluation.protocols import BoxRule, Nearest, View
from refseg.evaluation.rows import Row
from refseg.records import Expression, Record, without_crowds

Size = tuple[int, int]


@dataclass
class Truth:
    """The ground truth of one image: a record whose instances have boxes or masks to take them from, and what was made
    of it on the way, so that expressions and protocols share the work."""

    record: Record
    _instance_rles: dict[tuple[int, Overlap], dict] = field(default_factory=dict)
    _masks: dict[tuple, dict] = field(default_factory=dict)

    def instance_rle(self, index: int, overlap: Overlap = "union") -> dict:
        """At the original size."""
        key = (index, overlap)
        if key not in self._instance_rles:
            self._instance_rles[key] = to_rle(self.record.instances[index].segmentation, self.record.size, overlap)
        return self._instance_rles[key]

    def mask(self, expression: Expression, view: View, grid: Size) -> dict:
        """RLE of the expression's referents, merged, on the grid; of crowd regions alone it may be empty."""
        if view.crowds == "exclude":
            expression = without_crowds(expression, self.record)
        key = (expression.referents, view.overlap, view.target_by, view.target_resize, view.grid == "original", grid)
        if key not in self._masks:  # expressions of one object share it
            self._masks[key] = self._mask(expression, view, grid)
        return self._masks[key]

    def _mask(self, expression: Expression, view: View, grid: Size) -> dict:
        size = self.record.size
        if grid == size and not (view.target_by == "input" and view.grid != "original"):
            return union_rle([self.instance_rle(i, view.overlap) for i in expression.referents], size)
        if view.target_by == "original":
            merged = union_rle([self.instance_rle(i, view.overlap) for i in expression.referents], size)
            return resize_rle(merged, grid, view.target_resize)
        return union_rle([self._drawn_rle(i, view.overlap, grid) for i in expression.referents], grid)

    def _drawn_rle(self, index: int, overlap: Overlap, grid: Size) -> dict:
        """Polygons are moved and drawn on the grid; what has only pixels is resized."""
        segmentation, size = self.record.instances[index].segmentation, self.record.size
        if isinstance(segmentation, dict | str):
            return resize_rle(self.instance_rle(index, overlap), grid)  # as detectron2: Pillow's nearest
        scale = (grid[1] / size[1], grid[0] / size[0])
        rings = [np.reshape(ring[: len(ring) // 2 * 2], (-1, 2)) * scale for ring in segmentation]
        return to_rle([ring.ravel() for ring in rings], grid, overlap)

    def boxes(self, expression: Expression) -> np.ndarray:
        """(N, 4) of the referents, (x, y, width, height), as annotated, or around the mask."""
        boxes = [self.record.instances[i].box or box_of(self.instance_rle(i)) for i in expression.referents]
        return np.array(boxes, np.float64).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of one expression. `mask`: compressed RLE, raw: before any rule for "nothing here"; None where
    only boxes are told. `boxes`: (x, y, width, height, score), or None where the mask's box stands in."""

    mask: dict | None
    no_target_prob: float | None = None
    boxes: Sequence[Sequence[float]] | None = None

    def scored_boxes(self) -> Sequence[Sequence[float]]:
        if self.boxes is not None:
            return self.boxes
        return [] if self.mask is None else [scored_box(self.mask, 1.0)]


def resize_rle(rle: dict, size: Size, rule: Nearest = "pillow") -> dict:
    """Resize a mask to the nearest pixels, on its run lengths, without decoding.

    Published evaluators differ in which pixel is the nearest. "pillow": the one at the center of the new pixel (LAVT,
    DMMI). "cv2": the one at its upper left corner, floor(x * scale) (DeRIS, C3VG and SimVG, through mmdet's
    `BitmapMasks.resize`). The two differ where the factor is no whole number.
    """
    if tuple(rle["size"]) == tuple(size):
        return rle
    height, width = rle["size"]
    rows, columns = nearest_source(height, size[0], rule), nearest_source(width, size[1], rule)
    edges = np.cumsum(decode_runs(rle["counts"]))[:-1]  # pixels, counted down the columns, where the mask turns
    first = np.searchsorted(edges, columns * height)  # of each new column: its part edges[first:last] of the edges
    last = np.searchsorted(edges, (columns + 1) * height)
    counts = last - first
    column = np.repeat(np.arange(size[1]), counts)
    taken = np.arange(len(column)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    turns = column * size[0] + np.searchsorted(rows, edges[taken] - columns[column] * height)
    # A column begins in the state that its source begins in, whatever the state at the end of the column before it.
    differs = first % 2 != np.concatenate([[0], last[:-1] % 2])
    turns = np.sort(np.concatenate([turns, np.flatnonzero(differs) * size[0]]))
    new = np.flatnonzero(np.concatenate([[True], turns[1:] != turns[:-1]])[: len(turns)])
    odd = np.diff(new, append=len(turns)) % 2 == 1  # two turns at the same place are none
    pixels = size[0] * size[1]
    turns = turns[new[odd]]
    ends = np.concatenate([turns[turns < pixels], [pixels]])
    runs = np.concatenate([ends[:1], ends[1:] - ends[:-1]])
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


@cache
def nearest_source(length: int, new_length: int, rule: Nearest) -> np.ndarray:
    """(new_length,) the pixel of a line that each pixel of the resized line takes, by the library itself."""
    line = np.arange(length, dtype=np.float32)[None]
    if rule == "cv2":
        import cv2

        return cv2.resize(line, (new_length, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)
    from PIL import Image

    return np.asarray(Image.fromarray(line).resize((new_length, 1), Image.Resampling.NEAREST))[0].astype(np.int64)


def box_of(rle: dict) -> tuple[float, float, float, float]:
    x, y, width, height = coco_mask.toBbox(rle).tolist()
    return (x, y, width, height)


def scored_box(rle: dict, score: float) -> list[float]:
    """(x, y, width, height, score) of a mask."""
    return [*box_of(rle), score]


def misfit(answer: Answer, size: Size, grid: Size, view: View) -> str:
    """Why a mask cannot be compared on the grid, in an image of this size; "" where it can."""
    if answer.mask is None:
        return "" if view.boxes is not None and answer.boxes is not None else "no mask"
    height, width = answer.mask["size"]
    if (height, width) in (size, grid):
        return ""
    wanted = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys((size, grid)))
    return f"{height} x {width}, not {wanted}"


def measure(answer: Answer, truth: Truth, expression: Expression, view: View) -> Row:
    """The answer's mask must have the grid's size, or the original one, from which it is then resized. Where boxes are
    scored there need not be one."""
    record = truth.record
    has_target = bool(expression.referents)
    grid = view.grid_of(has_target, record.size)
    problem = misfit(answer, record.size, grid, view)
    if problem:
        raise DataError(f"the answer to {expression.expression_id} does not fit: {problem}")
    target = truth.mask(expression, view, grid)
    areas = areas_of_rles(union_rle([], grid) if answer.mask is None else resize_rle(answer.mask, grid), target)
    original = truth.mask(expression, View(crowds=view.crowds), record.size)
    matches = Matches(0, 0, 0) if view.boxes is None else _match(answer, truth.boxes(expression), view.boxes)
    categories = {record.instances[i].category for i in expression.referents}
    return Row(
        expression_id=expression.expression_id,
        image_id=record.image_id,
        object_id=expression.object_id,
        intersection=areas.intersection,
        predicted=areas.predicted,
        target=areas.target,
        has_target=has_target,
        no_target_prob=math.nan if answer.no_target_prob is None else float(answer.no_target_prob),
        num_targets=len(expression.referents),
        num_words=len(expression.text.split()),
        target_area=int(coco_mask.area(original)),
        image_area=record.size[0] * record.size[1],
        skill=str(expression.tags.get("skill", "")),
        categories="|".join(sorted(category for category in categories if category)),
        boxes_matched=matches.matched,
        boxes_predicted=matches.predicted,
        boxes_target=matches.target,
    )


def _match(answer: Answer, targets: np.ndarray, rule: BoxRule) -> Matches:
    boxes = answer.scored_boxes()
    found = best_box(boxes) if rule.min_score is None else surviving(boxes, rule.min_score)
    return match_boxes(found, targets, generalised=rule.generalised, threshold=rule.threshold)
