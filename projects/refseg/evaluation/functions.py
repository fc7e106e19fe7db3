"""Scores as pure functions: areas per expression, then sums. Integers until the last division."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class ExpressionRow:
    """One expression: pixels of intersection and union, whether there is a target, whether the model said none."""

    expression_id: str
    intersection: int
    union: int
    has_target: bool
    rejected: bool
    skill: str = ""
    num_targets: int = 0

    @property
    def iou(self) -> float:
        """Intersection over union; two empty masks agree."""
        return self.intersection / self.union if self.union else float(not self.has_target)


def score_expression(
    expression_id: str,
    predicted: np.ndarray,
    target: np.ndarray,
    *,
    rejected: bool,
    has_target: bool,
    skill: str = "",
    num_targets: int = 0,
) -> ExpressionRow:
    """Protocol `refseg`: original size, union masks, a rejected expression has an empty mask."""
    if predicted.shape != target.shape:
        raise ValueError(f"{expression_id}: predicted mask {predicted.shape}, ground truth {target.shape}")
    if rejected:
        predicted = np.zeros_like(predicted)
    return ExpressionRow(
        expression_id=expression_id,
        intersection=int(np.count_nonzero(predicted & target)),
        union=int(np.count_nonzero(predicted | target)),
        has_target=has_target,
        rejected=rejected,
        skill=skill,
        num_targets=num_targets,
    )


def _percent(values: Sequence[float] | Sequence[bool]) -> float:
    return 100.0 * float(np.mean(np.asarray(values, dtype=np.float64)))


def summarise(rows: Sequence[ExpressionRow]) -> dict[str, float]:
    """Percentages. A number whose denominator is empty is left out.

    oIoU, mIoU, Pr@X over expressions with a target; cIoU, gIoU over all (GRES: a rejected no-target expression counts
    1, another 0); N-acc, T-acc: share of no-target (target) expressions recognised as such by the no-target rule.
    """
    scores: dict[str, float] = {}
    if not rows:
        return scores
    targets = [row for row in rows if row.has_target]
    empties = [row for row in rows if not row.has_target]
    gres = [row.iou if row.has_target else float(row.rejected) for row in rows]
    union = sum(row.union for row in rows)
    scores["gIoU"] = _percent(gres)
    if union:
        scores["cIoU"] = 100.0 * sum(row.intersection for row in rows) / union
    if targets:
        ious = [row.iou for row in targets]
        union = sum(row.union for row in targets)
        scores["oIoU"] = 100.0 * sum(row.intersection for row in targets) / union
        scores["mIoU"] = _percent(ious)
        for threshold in PRECISION_AT:
            scores[f"Pr@{threshold}"] = _percent([iou >= threshold for iou in ious])
        scores["T-acc"] = _percent([not row.rejected for row in targets])
    if empties:
        scores["N-acc"] = _percent([row.rejected for row in empties])
    return scores


def summarise_by(rows: Sequence[ExpressionRow], field: str) -> list[dict[str, float | str | int]]:
    """One line per value of a field of the rows (`skill`, `num_targets`): the value, how many, and the main scores."""
    values = sorted({getattr(row, field) for row in rows})
    lines = []
    for value in values:
        chosen = [row for row in rows if getattr(row, field) == value]
        scores = summarise(chosen)
        line: dict[str, float | str | int] = {field: value, "expressions": len(chosen)}
        for name in ("gIoU", "cIoU", "Pr@0.5", "N-acc"):
            if name in scores:
                line[name] = scores[name]
        lines.append(line)
    return lines
