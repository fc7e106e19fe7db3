"""Two sets of predictions on the same expressions: metrics side by side, and where they disagree. R expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.errors import DataError
from refseg.evaluation.breakdowns import get_breakdown
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import PairedResult, paired_test

BY = ("skill", "length", "targets")
CLEARLY = 0.1  # from this difference on, one is called better on an expression


@dataclass(frozen=True)
class Comparison:
    """`rows_a`, `rows_b`: of the same expressions in the same order. `breakdowns`: per way of grouping a line per
    group, with its label, "expressions", and for each metric both values. `worth_a`, `worth_b`: (R,) what each answer
    is worth by the protocol."""

    protocol: Protocol
    rows_a: Rows
    rows_b: Rows
    metrics: dict[str, PairedResult]
    breakdowns: dict[str, list[dict[str, Any]]]
    worth_a: np.ndarray
    worth_b: np.ndarray

    @property
    def what(self) -> str:
        """What an answer's worth is."""
        return "IoU" if self.protocol.view.boxes is None else "match of boxes"

    def by_disagreement(self) -> np.ndarray:
        """Indices of the expressions on which the two differ, the most first; equal ones in the order of the data."""
        distance = np.abs(self.worth_a - self.worth_b)
        order = np.argsort(-distance, kind="stable")
        return order[distance[order] > 0]

    def tally(self) -> dict[str, int]:
        """On how many expressions A, B or neither is better by CLEARLY."""
        gain = self.worth_b - self.worth_a
        a, b = int((gain <= -CLEARLY).sum()), int((gain >= CLEARLY).sum())
        return {"a": a, "b": b, "neither": len(gain) - a - b}


def compare_rows(
    rows_a: Rows, rows_b: Rows, protocol: Protocol, *, by: Sequence[str] = BY, num: int = 10_000, seed: int = 0
) -> Comparison:
    """Expressions that only one of them has are left out."""
    rows_a, rows_b = _common(rows_a, rows_b)
    metrics = paired_test(protocol.terms(rows_a), protocol.terms(rows_b), rows_a.image, num=num, seed=seed)
    return Comparison(
        protocol=protocol,
        rows_a=rows_a,
        rows_b=rows_b,
        metrics=metrics,
        breakdowns={name: _pairs(rows_a, rows_b, protocol, name) for name in by},
        worth_a=protocol.worth_of(rows_a),
        worth_b=protocol.worth_of(rows_b),
    )


def headline(metrics: Sequence[str]) -> list[str]:
    """The metrics that stand for the others in small tables."""
    return [name for name in metrics if not name.startswith("Pr@0")][:2]


def _common(rows_a: Rows, rows_b: Rows) -> tuple[Rows, Rows]:
    ids_a, ids_b = rows_a.expression_id, rows_b.expression_id
    if np.array_equal(ids_a, ids_b):
        return rows_a, rows_b
    place_b = {name: place for place, name in enumerate(ids_b)}
    in_a = np.array([place for place, name in enumerate(ids_a) if name in place_b], np.int64)
    if not len(in_a):
        raise DataError("the two prediction files have no expression in common")
    return rows_a[in_a], rows_b[np.array([place_b[name] for name in ids_a[in_a]], np.int64)]


def _pairs(rows_a: Rows, rows_b: Rows, protocol: Protocol, by: str) -> list[dict[str, Any]]:
    """Groups are of the ground truth, so they are the same for both."""
    labels, group = get_breakdown(by)(rows_a)
    lines = []
    for number, label in enumerate(labels):
        chosen = np.flatnonzero(group == number)
        if len(chosen):
            of_a, of_b = protocol.score(rows_a[chosen]), protocol.score(rows_b[chosen])
            pairs = {name: (value, of_b[name]) for name, value in of_a.items() if name in of_b}
            lines.append({by: label, "expressions": len(chosen), **pairs})
    return lines
