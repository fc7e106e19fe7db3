"""Measure one answer against the ground truth on a view's grid, which gives a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from pycocotools import mask as coco_mask

from refseg.datasets.masks import Overlap, to_rle
from refseg.datasets.readers.checks import decode_runs
from refseg.errors import DataError
from refseg.evaluation.overlap import (
    BoxMatches,
    areas_of_rles,
    box_iou,
    match_boxes,
    match_instances,
    select_boxes,
    union_rle,
    without_duplicates,
)
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.protocols import Nearest, View
from refseg.evaluation.rows import Row
from refseg.instance import Instance
from refseg.records import Expression, Record, without_crowds

Size = tuple[int, int]


@dataclass
class Truth:
    """The ground truth of one image, with a cache of its masks that expressions and protocols share.

    Args:
        record: Record of the image. Each instance has a box or a mask to take it from.
    """

    record: Record
    _instance_rles: dict[tuple[int, Overlap], dict] = field(default_factory=dict)
    _masks: dict[tuple, dict] = field(default_factory=dict)

    def instance_rle(self, index: int, overlap: Overlap = "union") -> dict:
        """Return the mask of an instance at the original size."""
        key = (index, overlap)
        if key not in self._instance_rles:
            self._instance_rles[key] = to_rle(self.record.instances[index].segmentation, self.record.size, overlap)
        return self._instance_rles[key]

    def mask(self, expression: Expression, view: View, grid: Size) -> dict:
        """Return the merged mask of an expression's referents on the grid.

        It may be empty where the view excludes crowd regions.
        """
        if view.crowds == "exclude":
            expression = without_crowds(expression, self.record)
        key = (expression.referents, view.overlap, view.target_by, view.target_resize, view.grid == "original", grid)
        if key not in self._masks:  # expressions of one object share it
            if view.target_by == "input" and (view.grid != "original" or grid != self.record.size):
                rles = [self._drawn_rle(index, view.overlap, grid) for index in expression.referents]
                self._masks[key] = union_rle(rles, grid)
            else:
                rles = [self.instance_rle(index, view.overlap) for index in expression.referents]
                self._masks[key] = resize_rle(union_rle(rles, self.record.size), grid, view.target_resize)
        return self._masks[key]

    def _drawn_rle(self, index: int, overlap: Overlap, grid: Size) -> dict:
        """Draw the polygons of an instance on the grid, or resize its mask if it has no polygons."""
        segmentation, size = self.record.instances[index].segmentation, self.record.size
        if isinstance(segmentation, dict | str):
            return resize_rle(self.instance_rle(index, overlap), grid)  # as detectron2: Pillow's nearest
        scale = (grid[1] / size[1], grid[0] / size[0])
        rings = [np.reshape(ring[: len(ring) // 2 * 2], (-1, 2)) * scale for ring in segmentation]
        return to_rle([ring.ravel() for ring in rings], grid, overlap)

    def boxes(self, expression: Expression) -> np.ndarray:
        """Return the boxes (N, 4) of the referents: the annotated ones, or those around the masks."""
        boxes = [self.record.instances[i].box or coco_mask.toBbox(self.instance_rle(i)) for i in expression.referents]
        return np.array(boxes, np.float64).reshape(-1, 4)


def resize_rle(rle: dict, size: Size, rule: Nearest = "pillow") -> dict:
    """Resize a compressed RLE to the nearest pixels, on its run lengths, without decoding.

    Published evaluators disagree on the nearest pixel. "pillow" takes the one at the center of the new pixel (LAVT,
    DMMI). "cv2" takes the one at its upper left corner, floor(x * scale) (DeRIS, C3VG and SimVG, through mmdet's
    `BitmapMasks.resize`). The two differ unless the factor is an integer.
    """
    if tuple(rle["size"]) == tuple(size):
        return rle
    height, width = rle["size"]
    rows, columns = nearest_source(height, size[0], rule), nearest_source(width, size[1], rule)
    # Edges are the pixels, counted down the columns, where the mask changes between background and foreground. Each
    # new column takes the part edges[first:last] of its source column.
    edges = np.cumsum(decode_runs(rle["counts"]))[:-1]
    first = np.searchsorted(edges, columns * height)
    last = np.searchsorted(edges, (columns + 1) * height)
    counts = last - first
    column = np.repeat(np.arange(size[1]), counts)
    taken = np.arange(len(column)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    new_edges = column * size[0] + np.searchsorted(rows, edges[taken] - columns[column] * height)
    # A column starts in the state of its source column. Add an edge where the column before it ends in another state.
    differs = first % 2 != np.concatenate([[0], last[:-1] % 2])
    new_edges = np.sort(np.concatenate([new_edges, np.flatnonzero(differs) * size[0]]))
    # Two edges at the same place cancel out.
    distinct = np.flatnonzero(np.concatenate([[True], new_edges[1:] != new_edges[:-1]])[: len(new_edges)])
    odd = np.diff(distinct, append=len(new_edges)) % 2 == 1
    new_edges = new_edges[distinct[odd]]
    # Back to run lengths
    pixels = size[0] * size[1]
    ends = np.concatenate([new_edges[new_edges < pixels], [pixels]])
    runs = np.concatenate([ends[:1], ends[1:] - ends[:-1]])
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


@cache
def nearest_source(length: int, new_length: int, rule: Nearest) -> np.ndarray:
    """Return (new_length,): the source pixel of each pixel of a resized line, as the library itself picks it."""
    line = np.arange(length, dtype=np.float32)[None]
    if rule == "cv2":
        import cv2

        return cv2.resize(line, (new_length, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)
    from PIL import Image

    return np.asarray(Image.fromarray(line).resize((new_length, 1), Image.Resampling.NEAREST))[0].astype(np.int64)


class MisfitError(ValueError):
    """An answer that cannot be measured on a view: it has no mask, or a mask of the wrong size."""


def check_instances(instances: Sequence[Instance], size: Size) -> None:
    """Raise a MisfitError unless all masks have the image's size."""
    for number, instance in enumerate(instances):
        height, width = instance.rle["size"]
        if (height, width) != tuple(size):
            raise MisfitError(f"instances[{number}] is {height} x {width}, but the image is {size[0]} x {size[1]}")


def measure(answer: Answer, truth: Truth, expression: Expression, view: View) -> Row:
    """Measure an answer on the grid of a view.

    The mask must have the size of the grid, or that of the image, from which it is resized. Views with a box rule need
    no mask if there are boxes or instances. Views with an instance rule take an answer without instances for one
    instance, its mask.

    Raises:
        MisfitError: The answer does not fit the image or the view.
        DataError: The view scores masks, but a target is a box.
    """
    record, has_target = truth.record, bool(expression.referents)
    referents = [record.instances[index] for index in expression.referents]
    if view.boxes is None and [instance for instance in referents if not instance.has_mask]:
        raise DataError(
            f"expression {expression.expression_id} refers to a box without a mask. Score boxes, for example with "
            "--protocol rec"
        )
    grid = view.grid_of(has_target, record.size)

    # Boxes: those of the answer, or those around its instances, or the one around its mask
    mask, boxes, rule = answer.raw_rle, answer.boxes, view.boxes
    if rule is not None and boxes is None and answer.raw_instances is not None:
        check_instances(answer.raw_instances, record.size)
        boxes = [_box_around(instance.rle, instance.score) for instance in answer.raw_instances]
    if mask is None:
        if (rule is None or boxes is None) and (view.instances is None or answer.raw_instances is None):
            raise MisfitError("no mask")
    elif tuple(mask["size"]) not in (record.size, grid):
        size, *fitting = [f"{h} x {w}" for h, w in (mask["size"], *dict.fromkeys((record.size, grid)))]
        raise MisfitError(f"{size}, not {' or '.join(fitting)}")
    matches, best_iou = BoxMatches(0, 0, 0), 0.0
    if rule is not None:
        predicted = select_boxes([_box_around(mask, 1.0)] if boxes is None else boxes, rule.min_score)
        wanted = truth.boxes(expression)
        matches = match_boxes(predicted, wanted, generalized=rule.generalised, threshold=rule.threshold)
        best_iou = float(box_iou(predicted, wanted).max(initial=0.0))

    # Instances that match, at the original size
    matched: tuple[int, ...] = ()
    instances: list[dict] = []
    targets: tuple[int, ...] = ()
    if view.instances is not None:
        targets = without_crowds(expression, record).referents
        if answer.raw_instances is None:
            instances = [mask]
        else:
            check_instances(answer.raw_instances, record.size)
            instances = [one.rle for one in answer.raw_instances if one.score >= view.instances.min_score]
        instances = [rle for rle in instances if coco_mask.area(rle)]
        if view.instances.duplicate_iou is not None:
            instances = without_duplicates(instances, view.instances.duplicate_iou)
        rles = [truth.instance_rle(index) for index in targets]
        matched = match_instances(instances, rles, view.instances.thresholds)

    # Masks
    target = truth.mask(expression, view, grid)
    ignored = truth.mask(replace(expression, referents=expression.ignored), view, grid) if expression.ignored else None
    areas = areas_of_rles(union_rle([], grid) if mask is None else resize_rle(mask, grid), target, ignored)
    # The target at the original size is mostly the same mask
    if grid == record.size and view.overlap == "union" and ignored is None:
        target_area = areas.target
    else:
        target_area = int(coco_mask.area(truth.mask(expression, View(crowds=view.crowds), record.size)))
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
        target_area=target_area,
        image_area=record.size[0] * record.size[1],
        skill=str(expression.tags.get("skill", "")),
        categories="|".join(sorted({instance.category for instance in referents if instance.category})),
        boxes_matched=matches.matched,
        boxes_predicted=matches.predicted,
        boxes_target=matches.target,
        box_iou=best_iou,
        matched=matched,
        predicted_objects=len(instances),
        objects=len(targets),
    )


def _box_around(rle: dict, score: float) -> list[float]:
    """Return the scored box (x, y, width, height, score) around a mask."""
    return [*coco_mask.toBbox(rle).tolist(), score]
