"""Calibration of the no-target probability, and its threshold's effect on the metrics.

Without `no_target_prob`, `threshold_curve` and `calibration` return None. Letters: R rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from refseg.evaluation.breakdowns import confusion
from refseg.evaluation.protocols import READ_BY, NoTarget, Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import auroc, risk_coverage

GRID = np.linspace(0.0, 1.0, 101)
Bins = Literal["width", "mass"]


def threshold_curve(
    rows: Rows, protocol: Protocol, thresholds: np.ndarray | None = GRID
) -> list[dict[str, float]] | None:
    """Return N-acc, T-acc, their mean ("balanced") and, if the protocol has it, gIoU for each threshold.

    The values are those of `protocol.with_no_target(threshold=...)`, with rule "head" if the protocol's rule has no
    threshold.

    Args:
        thresholds: Thresholds to try. None: every distinct probability.
    """
    known = ~np.isnan(rows.no_target_prob)
    if not known.any():
        return None
    at = np.unique(rows.no_target_prob[known]) if thresholds is None else np.asarray(thresholds, np.float64)
    columns = threshold_columns(rows, protocol, at)
    if "N-acc" in columns and "T-acc" in columns:
        columns["balanced"] = (columns["N-acc"] + columns["T-acc"]) / 2
    return [
        {"threshold": float(value)} | {name: float(column[i]) for name, column in columns.items()}
        for i, value in enumerate(at)
    ]


def threshold_columns(rows: Rows, protocol: Protocol, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Return N-acc, T-acc and gIoU at each threshold (T,), as `threshold_curve`. Undefined metrics are left out.

    Each row's part of these metrics depends only on whether it is rejected. So the parts are computed twice, with all
    rows rejected and with the rows that every threshold rejects, and a running sum over rows sorted by probability
    gives every threshold. Rows without a probability are rejected only if every threshold rejects them.
    """
    prob = rows.no_target_prob
    known = ~np.isnan(prob)
    order = np.flatnonzero(known)[np.argsort(prob[known], kind="stable")]
    num_accepted = np.searchsorted(prob[order], thresholds, side="right")  # of `order`; the rest exceed the threshold
    rule = protocol.no_target.rule
    always = NoTarget(rule if rule in READ_BY["threshold"] else "head", threshold=1.0).rejected(rows)
    least_rejected = protocol.metrics(rows, always)
    all_rejected = protocol.metrics(rows, np.ones(len(rows), bool))

    def summed(accepted: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        """Sum over rows at each threshold, given the parts if accepted and if rejected."""
        change = np.append(np.cumsum((np.asarray(rejected, float) - accepted)[order][::-1])[::-1], 0.0)
        return np.asarray(accepted, float).sum() + change[num_accepted]

    target = rows.has_target
    sums = {
        "N-acc": (summed(~target & always, ~target), (~target).sum()),
        "T-acc": (summed(target & ~always, np.zeros(len(rows))), target.sum()),
    }
    if "gIoU" in least_rejected:
        sums["gIoU"] = (summed(least_rejected["gIoU"][0], all_rejected["gIoU"][0]), len(rows))
    return {name: 100.0 * numerator / denominator for name, (numerator, denominator) in sums.items() if denominator}


def calibration(rows: Rows, *, num_bins: int = 15) -> dict[str, Any] | None:
    """Return AUROC and, as fractions, the Brier score, expected calibration errors, and the risk-coverage curve of the
    no-target probability with its area, AURC.

    The curve is of the decision "nothing here" at probability 1/2: the loss is whether it is wrong, and the confidence
    is the probability of the decision.
    """
    known = ~np.isnan(rows.no_target_prob)
    prob, none = rows.no_target_prob[known], ~rows.has_target[known]
    if not len(prob):
        return None
    risks = risk_coverage(np.maximum(prob, 1 - prob), (prob > 0.5) != none)
    chosen = np.unique(np.ceil(np.linspace(0.05, 1.0, 20) * len(risks)).astype(int))
    return {
        "expressions": len(prob),
        "without_probability": len(rows) - len(prob),
        "no_target": int(none.sum()),
        "AUROC": auroc(prob, none),
        "Brier": float(np.mean((prob - none) ** 2)),
        "ECE": expected_error(prob, none, num_bins=num_bins, bins="width"),
        "ECE_equal_mass": expected_error(prob, none, num_bins=num_bins, bins="mass"),
        "AURC": float(risks.mean()),
        "risk_coverage": [{"coverage": int(k) / len(risks), "risk": float(risks[k - 1])} for k in chosen.tolist()],
        "reliability": reliability(prob, none, num_bins=num_bins),
    }


def reliability(prob: np.ndarray, positive: np.ndarray, *, num_bins: int, bins: Bins = "width") -> list[dict[str, Any]]:
    """Return the reliability diagram: a line per bin that has expressions.

    A line has the bin's ends, the number of expressions, their mean probability, and the share that is positive, which
    equals the probability under perfect calibration. Bins include their lower end, and the last one its upper end too.

    Args:
        bins: "width" for bins of equal width, "mass" for bins with about equally many expressions, where equal
            probabilities stay together.
    """
    if bins == "width":
        edges = np.linspace(0.0, 1.0, num_bins + 1)
    else:
        inner = np.quantile(prob, np.arange(1, num_bins) / num_bins, method="higher")
        edges = np.concatenate([[0.0], np.unique(inner), [1.0]])
    bin_of = np.searchsorted(edges[1:-1], prob, side="right")
    lines = []
    for number in range(len(edges) - 1):
        chosen = bin_of == number
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
    """Return the expected calibration error: |probability - share| of each bin, averaged over expressions."""
    lines = reliability(prob, positive, num_bins=num_bins, bins=bins)
    return sum(line["expressions"] * abs(line["probability"] - line["share"]) for line in lines) / len(prob)


def no_target_report(rows: Rows, protocol: Protocol) -> dict[str, Any]:
    """Return the confusion of target and no target under a protocol, the calibration, and the threshold curve."""
    return {
        "confusion": confusion(rows, protocol.no_target.rejected(rows)),
        "calibration": calibration(rows),
        "curve": threshold_curve(rows, protocol),
    }


def no_target_lines(report: dict[str, Any]) -> list[str]:
    """Format `no_target_report` for people."""
    counts = "; ".join(f"{name} {value}" for name, value in report["confusion"]["counts"].items())
    scores = report["calibration"]
    if scores is None:
        return [f"nothing here: {counts}; the predictions have no no_target_prob to calibrate"]
    area = "-" if scores["AUROC"] is None else f"{scores['AUROC']:.3f}"
    return [
        f"nothing here: {counts}",
        f"no_target_prob: AUROC {area}, Brier {scores['Brier']:.3f}, calibration error {scores['ECE']:.3f}, "
        f"AURC {scores['AURC']:.3f}",
    ]
