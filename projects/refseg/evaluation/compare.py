"""Two sets of predictions for the same expressions: metrics side by side, and where they disagree. R expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.errors import DataError
from refseg.evaluation.breakdowns import iter_groups
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import PairedResult, paired_ranking_test, paired_test

BY = ("skill", "length", "targets")
MOST_RANKINGS = 500  # resamples that are ranked anew
CLEARLY = 0.1  # a difference in worth from which one answer is called better


@dataclass(frozen=True)
class Comparison:
    """Result of comparing predictions A and B under one protocol.

    Args:
        rows_a: Rows of A.
        rows_b: Rows of B, of the same expressions in the same order.
        breakdowns: For each breakdown a line per group: its label, "expressions", and for each metric both values.
        worth_a: (R,) worth of each answer of A under the protocol.
        worth_b: (R,) the same for B.
    """

    protocol: Protocol
    rows_a: Rows
    rows_b: Rows
    metrics: dict[str, PairedResult]
    breakdowns: dict[str, list[dict[str, Any]]]
    worth_a: np.ndarray
    worth_b: np.ndarray

    @property
    def what(self) -> str:
        """The quantity in `worth_a` and `worth_b`."""
        if self.protocol.view.instances is not None:
            return "F1 of objects"
        return "IoU" if self.protocol.view.boxes is None else "match of boxes"

    def by_disagreement(self) -> np.ndarray:
        """Return the indices of the expressions whose worth differs, largest difference first, ties in data order."""
        distance = np.abs(self.worth_a - self.worth_b)
        order = np.argsort(-distance, kind="stable")
        return order[distance[order] > 0]

    def tally(self) -> dict[str, int]:
        """Count the expressions on which A, B or neither is better by at least CLEARLY."""
        gain = self.worth_b - self.worth_a
        a, b = int((gain <= -CLEARLY).sum()), int((gain >= CLEARLY).sum())
        return {"a": a, "b": b, "neither": len(gain) - a - b}


def compare_rows(
    rows_a: Rows, rows_b: Rows, protocol: Protocol, *, by: Sequence[str] = BY, num: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two sets of rows on the expressions that both have.

    Args:
        by: Names of breakdowns.
        num: Number of resamples and of swaps in the paired test.
    """
    # Bring the common expressions into the order of A.
    ids_a, ids_b = rows_a.expression_id, rows_b.expression_id
    if not np.array_equal(ids_a, ids_b):
        place_b = {name: place for place, name in enumerate(ids_b)}
        in_a = np.array([place for place, name in enumerate(ids_a) if name in place_b], np.int64)
        if not len(in_a):
            raise DataError("the two prediction files have no expression in common")
        rows_a, rows_b = rows_a[in_a], rows_b[np.array([place_b[name] for name in ids_a[in_a]], np.int64)]
    # Score each group. Groups come from the ground truth, so they are the same for A and B.
    breakdowns: dict[str, list[dict[str, Any]]] = {name: [] for name in by}
    for name, lines in breakdowns.items():
        for line, chosen in iter_groups(rows_a, name):
            scores_a, scores_b = protocol.score(rows_a[chosen]), protocol.score(rows_b[chosen])
            lines.append(line | {key: (value, scores_b[key]) for key, value in scores_a.items() if key in scores_b})
    metrics = paired_test(protocol.terms(rows_a), protocol.terms(rows_b), rows_a.image, num=num, seed=seed)
    # How well the no-target probabilities rank, where both have one and the protocol reads it
    known = ~(np.isnan(rows_a.no_target_prob) | np.isnan(rows_b.no_target_prob))
    if known.any() and "AUC" in protocol.score(rows_a[known]):
        metrics |= paired_ranking_test(
            rows_a.no_target_prob[known],
            rows_b.no_target_prob[known],
            ~rows_a.has_target[known],
            rows_a.image[known],
            num=min(num, MOST_RANKINGS),
            seed=seed,
        )
    return Comparison(
        protocol=protocol,
        rows_a=rows_a,
        rows_b=rows_b,
        metrics=metrics,
        breakdowns=breakdowns,
        worth_a=protocol.worth_of(rows_a),
        worth_b=protocol.worth_of(rows_b),
    )


def headline(metrics: Sequence[str]) -> list[str]:
    """Return the two metrics that small tables show."""
    return [name for name in metrics if not name.startswith("Pr@0")][:2]
