"""Annotated objects that an answer hits, and the calibration of the scores of predicted instances.

An object is hit if the answer covers at least half of its pixels. (Its IoU with a mask of several objects would say
nothing.) Objects without annotations cannot be hit, so "no object" means no annotated one. Letters: N expressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.analysis.calibration import expected_error, reliability
from refseg.evaluation.alignment import match_masks
from refseg.evaluation.measure import Truth, resize_rle
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import TruthIndex
from refseg.evaluation.statistics import auroc
from refseg.records import Expression

HIT = 0.5  # the share of an object's pixels that an answer covers

WITH_TARGET = (
    "all targets and nothing else",
    "some of the targets, nothing else",
    "targets and other objects",
    "other objects only",
    "no object",
    "nothing: rejected, or an empty mask",
)
WITHOUT_TARGET = ("one object", "several objects", "no object", "nothing: rejected, or an empty mask")


def covered(mask: dict, objects: Sequence[dict]) -> np.ndarray:
    """Return (number of objects,) bool: whether the mask hits each object. Empty objects are never hit.

    All arguments are RLEs of the same size.
    """
    if not objects:
        return np.zeros(0, bool)
    share = np.asarray(coco_mask.iou(list(objects), [mask], [1]), np.float64)[:, 0]  # of each object's own pixels
    return np.nan_to_num(share) >= HIT


class ObjectTable:
    """Columns over the N expressions of `truths`, filled while predictions pass through `watch`.

    Attributes:
        seen: (N,) whether there was an answer with a mask.
        targets_hit: (N,) number of targets that the mask hits.
        others_hit: (N,) number of other objects of the image that the mask hits.
        found_all: (N,) whether the predicted instances match the referents one to one (IoU of at least 0.5).
        scores: Scores of all predicted instances of expressions with a target.
        matched: Whether each of these instances matches a referent.
    """

    def __init__(self, truths: TruthIndex) -> None:
        self.truths = truths
        size = len(truths)
        self.seen, self.found_all = np.zeros(size, bool), np.zeros(size, bool)
        self.targets_hit, self.others_hit = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.tells_instances = False
        self.scores: list[float] = []
        self.matched: list[bool] = []

    def watch(self, rows: Iterable[Answer]) -> Iterator[Answer]:
        """Yield the same rows and measure them. The first of several rows of an expression counts."""
        for row in rows:
            position = self.truths.position.get(row.expression_id)
            if position is not None and row.source is not None and not self.seen[position]:
                self.add(position, row, self.truths.truth(position), self.truths.expression(position))
            yield row

    def add(self, position: int, row: Answer, truth: Truth, expression: Expression) -> None:
        objects = [truth.instance_rle(index) for index in range(len(truth.record.instances))]
        hit = covered(resize_rle(row.raw_rle, truth.record.size), objects)
        is_target = np.isin(np.arange(len(objects)), expression.referents)
        self.seen[position] = True
        self.targets_hit[position] = np.count_nonzero(hit & is_target)
        self.others_hit[position] = np.count_nonzero(hit & ~is_target)
        if row.raw_instances is None:
            return
        self.tells_instances = True
        instances = [one for one in row.raw_instances if tuple(one.rle["size"]) == tuple(truth.record.size)]
        targets = [objects[index] for index in expression.referents]
        pairs = match_masks([one.rle for one in instances], targets)
        self.found_all[position] = len(pairs) == len(targets) == len(row.raw_instances)
        if targets:
            matched = {number for number, _, _ in pairs}
            self.scores += [one.score for one in instances]
            self.matched += [number in matched for number in range(len(instances))]

    def hits(self, rows: Rows, rejected: np.ndarray, worth: np.ndarray) -> dict[str, list[dict[str, Any]]]:
        """Summarize what answers hit. Rows without a mask are left out.

        Args:
            worth: (R,) worth of each answer.

        Returns:
            For expressions "with a target" and "without a target", a line per outcome with the number of expressions,
            their share in percent, and their mean worth.
        """
        place = np.array([self.truths.position[name] for name in rows.expression_id], np.int64)
        known = self.seen[place] if len(place) else np.zeros(0, bool)
        place, rows, worth = place[known], rows[known], worth[known]
        nothing = rejected[known] | (rows.predicted == 0)
        targets, others = self.targets_hit[place], self.others_hit[place]
        with_target = np.select(
            [nothing, (targets == 0) & (others == 0), targets == 0, others > 0, targets < rows.num_targets],
            [5, 4, 3, 2, 1],
            0,
        )
        without = np.select([nothing, others == 0, others == 1], [3, 2, 0], 1)
        return {
            "with a target": _lines(WITH_TARGET, with_target, worth, rows.has_target),
            "without a target": _lines(WITHOUT_TARGET, without, worth, ~rows.has_target),
        }

    def calibration(self, *, num_bins: int = 10) -> dict[str, Any] | None:
        """Return the calibration of instance scores, as probabilities that the instance is a referent.

        None without scores, or if they are not probabilities.
        """
        scores, matched = np.array(self.scores, np.float64), np.array(self.matched, bool)
        if not len(scores) or scores.min() < 0 or scores.max() > 1:
            return None
        return {
            "instances": len(scores),
            "matched": int(matched.sum()),
            "AUROC": auroc(scores, matched),
            "ECE": expected_error(scores, matched, num_bins=num_bins),
            "reliability": reliability(scores, matched, num_bins=num_bins),
        }


def _lines(labels: Sequence[str], outcome: np.ndarray, worth: np.ndarray, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Return a line per outcome of the chosen rows, or none if no row is chosen."""
    total = np.count_nonzero(chosen)
    lines = []
    for number, label in enumerate(labels if total else ()):
        those = chosen & (outcome == number)
        count = int(np.count_nonzero(those))
        mean = float(worth[those].mean()) if count else None
        lines.append({"the answer hits": label, "expressions": count, "percent": 100.0 * count / total, "worth": mean})
    return lines
