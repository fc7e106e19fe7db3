"""What a model makes of pairs, in numbers: shares in percent, with intervals from resampling images.

An answer is right as in the report's cases: IoU of at least 0.5 with the truth, or, where the phrase refers to nothing,
an empty answer; a rejected expression has an empty one. P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.analysis.probes.pairs import KINDS, Pair
from refseg.evaluation.areas import areas_of_rles
from refseg.evaluation.statistics import bootstrap
from refseg.evaluation.terms import Terms, values
from refseg.report.examples import RIGHT_IOU

SAME_IOU = 0.8  # from this on, two answers are the same
METRICS = ("right", "changed right", "both right", "same answer", "IoU of answers")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`iou`: of the two answers; 1 where both are empty. `changed_right`: None where the truth is not known."""

    pair: Pair
    image: int
    right: bool
    changed_right: bool | None
    iou: float


def outcome(pair: Pair, image: int, answer: dict, changed: dict) -> Outcome:
    """`answer`, `changed`: RLEs of the final answers to both phrases."""
    known = None if pair.changed_truth is None else is_right(changed, pair.changed_truth)
    return Outcome(pair, image, is_right(answer, pair.truth), known, iou_of(answer, changed))


def is_right(answer: dict, truth: dict) -> bool:
    areas = areas_of_rles(answer, truth)
    return areas.intersection / areas.union >= RIGHT_IOU if areas.target else not areas.predicted


def iou_of(a: dict, b: dict) -> float:
    areas = areas_of_rles(a, b)
    return areas.intersection / areas.union if areas.union else 1.0


def terms_of(outcomes: Sequence[Outcome]) -> Terms:
    """Every share as arrays (P,) of numerators and denominators."""
    right = np.array([one.right for one in outcomes], bool)
    known = np.array([one.changed_right is not None for one in outcomes], bool)
    changed = np.array([bool(one.changed_right) for one in outcomes], bool)
    iou = np.array([one.iou for one in outcomes], np.float64)
    every = np.ones(len(outcomes), bool)
    terms = [(right, every), (changed, known), (right & changed, known), (iou >= SAME_IOU, every), (iou, every)]
    return dict(zip(METRICS, terms, strict=True))


def summarise(outcomes: Sequence[Outcome], *, resamples: int, seed: int = 0) -> list[dict[str, Any]]:
    """A line per kind that has pairs, and one of all. Shares of which nothing is known are None, and have no
    interval."""
    groups = {kind: [one for one in outcomes if one.pair.kind == kind] for kind in KINDS}
    lines = []
    for kind, members in {**groups, "all": list(outcomes)}.items():
        if not members:
            continue
        terms = terms_of(members)
        shares = values(terms)
        ends = bootstrap(terms, np.array([one.image for one in members]), num=resamples, seed=seed)
        lines.append(
            {
                "kind": kind,
                "pairs": len(members),
                "known": sum(one.changed_right is not None for one in members),
                "metrics": {name: shares.get(name) for name in METRICS},
                "intervals": {name: list(pair) for name, pair in ends.items()},
            }
        )
    return lines


def as_json(one: Outcome) -> dict[str, Any]:
    pair = one.pair
    return {
        "kind": pair.kind,
        "expression_id": pair.expression_id,
        "text": pair.text,
        "changed": pair.changed,
        "right": one.right,
        "changed_right": one.changed_right,
        "iou": round(one.iou, 4),
    }
