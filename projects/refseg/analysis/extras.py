"""What `refseg score` adds when asked: how well "nothing here" is known, and which words go with which instance."""

from __future__ import annotations

from typing import Any

from refseg.evaluation.breakdowns import confusion
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import TruthIndex


def no_target_report(rows: Rows, protocol: Protocol) -> dict[str, Any]:
    """Confusion of target and no target under the protocol; calibration and threshold curve of the probability, both
    None where the predictions have none."""
    from refseg.analysis.calibration import calibration, threshold_curve

    return {
        "confusion": confusion(rows, protocol.no_target.rejected(rows)),
        "calibration": calibration(rows),
        "curve": threshold_curve(rows, protocol),
    }


def alignment_report(path: str, truths: TruthIndex) -> dict[str, Any]:
    """Of the instances' weights over words, for all words and for those that not all referents share."""
    from refseg.evaluation.alignment import align_predictions, alignment_scores
    from refseg.evaluation.other_formats import open_predictions

    return {
        name: alignment_scores(align_predictions(open_predictions(path), truths, only_distinguishing=only))
        for name, only in (("all words", False), ("distinguishing words", True))
    }


def no_target_lines(report: dict[str, Any]) -> list[str]:
    counts = "; ".join(f"{name} {value}" for name, value in report["confusion"]["counts"].items())
    found = report["calibration"]
    if found is None:
        return [f"nothing here: {counts}; the predictions have no no_target_prob to calibrate"]
    auroc = "-" if found["AUROC"] is None else f"{found['AUROC']:.3f}"
    return [
        f"nothing here: {counts}",
        f"no_target_prob: AUROC {auroc}, Brier {found['Brier']:.3f}, calibration error {found['ECE']:.3f}",
    ]


def alignment_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, scores in report.items():
        told = ", ".join(
            f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in scores.items()
            if value is None or isinstance(value, int | float)
        )
        lines.append(f"words of instances, {name}: {told}")
    return lines
