"""Pairs of phrases that differ in one thing, and a model's answers to them in numbers.

Numbers are shares in percent, with intervals from resampling images. As in the report, an answer is right if its IoU
with the truth is at least 0.5, or, where the phrase refers to nothing, if it is empty. Rejection empties the answer.
Letters: P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.evaluation.overlap import areas_of_rles
from refseg.evaluation.statistics import bootstrap
from refseg.evaluation.terms import Terms, values
from refseg.report.examples import RIGHT_IOU

KINDS = {
    "left-right": "left and right change places",
    "above-below": "top and bottom, above and below change places",
    "color": "another color",
    "number": "one or all, another rank, fewer phrases",
    "negation": "with and without a \u201cnot\u201d",
    "absent": "something that the image does not show",
}
SAME_IOU = 0.8  # from this IoU on, two answers count as the same
METRICS = ("right", "changed right", "both right", "same answer", "IoU of answers")


@dataclass(frozen=True, slots=True)
class Pair:
    """A phrase and a changed one.

    Args:
        kind: Key of KINDS.
        truth: RLE at the image's size, empty if the phrase refers to nothing.
        changed_truth: The same for the changed phrase. None if it is unknown.
    """

    kind: str
    expression_id: str
    text: str
    changed: str
    truth: dict
    changed_truth: dict | None

    @property
    def same_truth(self) -> bool:
        """True if one answer may be right for both phrases."""
        return self.changed_truth is not None and iou_of(self.truth, self.changed_truth) >= SAME_IOU


@dataclass(frozen=True, slots=True)
class Outcome:
    """A model's answers to a pair.

    Args:
        image: Index of the image.
        changed_right: None if the truth is unknown.
        iou: IoU of the two answers, 1 if both are empty.
    """

    pair: Pair
    image: int
    right: bool
    changed_right: bool | None
    iou: float

    @classmethod
    def of(cls, pair: Pair, image: int, answer: dict, changed: dict) -> Outcome:
        """Judge the RLEs of the final answers to both phrases."""
        changed_right = None if pair.changed_truth is None else is_right(changed, pair.changed_truth)
        return cls(pair, image, is_right(answer, pair.truth), changed_right, iou_of(answer, changed))

    def as_json(self) -> dict[str, Any]:
        """Return JSON values, without masks."""
        texts = {name: getattr(self.pair, name) for name in ("kind", "expression_id", "text", "changed")}
        return texts | {"right": self.right, "changed_right": self.changed_right, "iou": round(self.iou, 4)}


def is_right(answer: dict, truth: dict) -> bool:
    areas = areas_of_rles(answer, truth)
    return areas.intersection / areas.union >= RIGHT_IOU if areas.target else not areas.predicted


def iou_of(a: dict, b: dict) -> float:
    areas = areas_of_rles(a, b)
    return areas.intersection / areas.union if areas.union else 1.0


def summarize(outcomes: Sequence[Outcome], *, resamples: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return a line per kind that has pairs, and one for all pairs.

    Shares are None, without an interval, if no truth is known.
    """
    groups = {kind: [one for one in outcomes if one.pair.kind == kind] for kind in KINDS}
    lines = []
    for kind, members in {**groups, "all": list(outcomes)}.items():
        if not members:
            continue
        # METRICS as arrays (P,) of numerators and denominators.
        right = np.array([one.right for one in members], bool)
        known = np.array([one.changed_right is not None for one in members], bool)
        changed = np.array([bool(one.changed_right) for one in members], bool)
        iou = np.array([one.iou for one in members], np.float64)
        every = np.ones(len(members), bool)
        terms = [(right, every), (changed, known), (right & changed, known), (iou >= SAME_IOU, every), (iou, every)]
        metrics: Terms = dict(zip(METRICS, terms, strict=True))

        shares = values(metrics)
        ends = bootstrap(metrics, np.array([one.image for one in members]), num=resamples, seed=seed)
        lines.append(
            {
                "kind": kind,
                "pairs": len(members),
                "known": int(known.sum()),
                "metrics": {name: shares.get(name) for name in METRICS},
                "intervals": {name: list(pair) for name, pair in ends.items()},
            }
        )
    return lines
