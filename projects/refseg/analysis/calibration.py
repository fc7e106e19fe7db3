"""The probability of "nothing here": what a threshold does to the metrics, and whether the number means what it says.

All of it needs `no_target_prob`; for models without it every function returns None. R rows, B bins.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from refseg.evaluation.protocols import READ_BY, NoTarget, Protocol
from refseg.evaluation.rows import Rows

GRID = np.linspace(0.0, 1.0, 101)
Bins = Literal["width", "mass"]


def threshold_curve(
    rows: Rows, protocol: Protocol, thresholds: np.ndarray | None = GRID
) -> list[dict[str, float]] | None:
    """A line per threshold: N-acc, T-acc, their mean ("balanced"), and gIoU where the protocol has it, each as
    `protocol.with_no_target(threshold=...)` gives it (of rule "head" where the protocol's own rule has no threshold).
    `thresholds` None: every distinct probability.

    In these an expression's part depends on its own rejection only. So the parts are computed twice, with all rejected
    and with those alone that every threshold rejects, and a running sum over rows in order of probability has every
    threshold.
    """
    known = ~np.isnan(rows.no_target_prob)
    if not known.any():
        return None
    prob = rows.no_target_prob
    at = np.unique(prob[known]) if thresholds is None else np.asarray(thresholds, np.float64)
    order = np.flatnonzero(known)[np.argsort(prob[known], kind="stable")]
    kept = np.searchsorted(prob[order], at, side="right")  # rows of `order` that stay; the rest exceed the threshold
    rule = protocol.no_target.rule
    always = NoTarget(rule if rule in READ_BY["threshold"] else "head", threshold=1.0).rejected(rows)
    least_rejected = protocol.metrics(rows, always)
    all_rejected = protocol.metrics(rows, np.ones(len(rows), bool))

    def summed(accepted: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        """Sums over rows at each threshold."""
        change = np.append(np.cumsum((np.asarray(rejected, float) - accepted)[order][::-1])[::-1], 0.0)
        return np.asarray(accepted, float).sum() + change[kept]

    target = rows.has_target
    curves = {
        "N-acc": (summed(~target & always, ~target), (~target).sum()),
        "T-acc": (summed(target & ~always, np.zeros(len(rows))), target.sum()),
    }
    if "gIoU" in least_rejected:
        curves["gIoU"] = (summed(least_rejected["gIoU"][0], all_rejected["gIoU"][0]), len(rows))
    lines = [{"threshold": float(value)} for value in at]
    for name, (numerator, denominator) in curves.items():
        for line, value in zip(lines, numerator if denominator else (), strict=bool(denominator)):
            line[name] = float(100.0 * value / denominator)
    for line in lines:
        if "N-acc" in line and "T-acc" in line:
            line["balanced"] = (line["N-acc"] + line["T-acc"]) / 2
    return lines


def calibration(rows: Rows, *, num_bins: int = 15) -> dict[str, Any] | None:
    """AUROC and, as fractions, the Brier score and expected calibration errors of the probability of "nothing here"."""
    prob, none = _known(rows)
    if not len(prob):
        return None
    return {
        "expressions": len(prob),
        "without_probability": len(rows) - len(prob),
        "no_target": int(none.sum()),
        "AUROC": auroc(prob, none),
        "Brier": float(np.mean((prob - none) ** 2)),
        "ECE": expected_error(prob, none, num_bins=num_bins, bins="width"),
        "ECE_equal_mass": expected_error(prob, none, num_bins=num_bins, bins="mass"),
        "reliability": reliability(prob, none, num_bins=num_bins),
    }


def auroc(prob: np.ndarray, positive: np.ndarray) -> float | None:
    """The chance that a positive has the higher probability than a negative, ties counting half; None where one of
    the two kinds is missing."""
    from scipy.stats import rankdata

    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    ranks = rankdata(prob)[positive].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def reliability(prob: np.ndarray, positive: np.ndarray, *, num_bins: int, bins: Bins = "width") -> list[dict[str, Any]]:
    """A line per bin that has expressions: its ends, how many, their mean probability, and the share that has no
    target, which would equal it. Bins hold their lower end; the last one its upper end too."""
    edges = _edges(prob, num_bins, bins)
    which = np.searchsorted(edges[1:-1], prob, side="right")
    lines = []
    for number in range(len(edges) - 1):
        chosen = which == number
        if chosen.any():
            lines.append(
                {
                    "low": float(edges[number]),
                    "high": float(edges[number + 1]),
                    "expressions": int(chosen.sum()),
                    "probability": float(prob[chosen].mean()),
                    "share": float(positive[chosen].mean()),
                }
            )
    return lines


def expected_error(prob: np.ndarray, positive: np.ndarray, *, num_bins: int, bins: Bins = "width") -> float:
    """The distance of probability and share, averaged over bins by their expressions (ECE of the event "no target").

    "width": bins of equal width. "mass": of about as many expressions each; equal probabilities stay together.
    """
    lines = reliability(prob, positive, num_bins=num_bins, bins=bins)
    return sum(line["expressions"] * abs(line["probability"] - line["share"]) for line in lines) / len(prob)


def _edges(prob: np.ndarray, num_bins: int, bins: Bins) -> np.ndarray:
    if bins == "width":
        return np.linspace(0.0, 1.0, num_bins + 1)
    inner = np.quantile(prob, np.arange(1, num_bins) / num_bins, method="higher")
    return np.concatenate([[0.0], np.unique(inner), [1.0]])


def _known(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and who has no target, of the rows that have one."""
    known = ~np.isnan(rows.no_target_prob)
    return rows.no_target_prob[known], ~rows.has_target[known]
