"""Every metric as a ratio of sums over rows: value = 100 * sum(numerators) / sum(denominators).

In that form a metric, its breakdowns and its bootstrap interval are one thing. A function here takes rows and the
decision `rejected` ("nothing here"), and returns a pair of (R,) arrays per metric. Metrics of units (an object with all
its expressions, as in R-RefCOCO) stand on the unit's first row.

Sums of pixels stay int64 until the division: a split has hundreds of millions of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refseg.evaluation.rows import Rows

Terms = dict[str, tuple[np.ndarray, np.ndarray]]
HALF_TO_NINE = (0.5, 0.6, 0.7, 0.8, 0.9)


def ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Elementwise, `empty` where the denominator is 0."""
    out = np.full(len(numerator), empty, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def values(terms: Terms) -> dict[str, float]:
    """Percentages; a metric without a denominator (T-acc where nothing has a target) is left out."""
    return {
        name: float(100.0 * numerator.sum() / denominator.sum())
        for name, (numerator, denominator) in terms.items()
        if denominator.sum()
    }


def precision(iou: np.ndarray, chosen: np.ndarray, thresholds: Sequence[float], *, strict: bool) -> Terms:
    """Pr@X: the share of the chosen rows whose IoU is at least X, or, strictly, above it."""
    return {
        f"Pr@{threshold}": (((iou > threshold) if strict else (iou >= threshold)) & chosen, chosen)
        for threshold in thresholds
    }


def accuracies(rows: Rows, rejected: np.ndarray) -> Terms:
    """N-acc: no-target expressions recognised as such. T-acc: expressions with a target that are not rejected."""
    none = ~rows.has_target
    return {"N-acc": (rejected & none, none), "T-acc": (~rejected & rows.has_target, rows.has_target)}


def single_target(rows: Rows, *, chosen: np.ndarray | None = None, strict: bool = False) -> Terms:
    """oIoU, mIoU and Pr@X as LAVT's test.py has them: two empty masks have IoU 0."""
    chosen = np.ones(len(rows), bool) if chosen is None else chosen
    iou = ratio(rows.intersection, rows.union)
    return {
        "oIoU": (rows.intersection * chosen, rows.union * chosen),
        "mIoU": (iou * chosen, chosen),
        **precision(iou, chosen, HALF_TO_NINE, strict=strict),
    }


def generalized(
    rows: Rows,
    rejected: np.ndarray,
    *,
    rejected_target: str = "raw",
    union_of_accepted: bool = True,
    thresholds: Sequence[float] = (0.7, 0.8, 0.9),
) -> Terms:
    """gIoU, cIoU, Pr@X over expressions with a target, N-acc, T-acc, as GRES's evaluators have them.

    An expression without target counts 1 and no pixels when rejected, else 0 and its predicted pixels. Evaluators
    differ in what a rejected expression with a target counts, `rejected_target`: "raw" (ReLA): no intersection, but the
    union with the mask as it was; "emptied" (DeRIS): the mask is empty, the union is the target; "kept" (GSVA): scored
    as if it had not been rejected. `union_of_accepted=False` leaves the predicted pixels of an expression without
    target out of cIoU (GSVA on any set but gRefCOCO).
    """
    target = rows.has_target
    lost = rejected & target & (rejected_target != "kept")
    intersection = np.where(target & ~lost, rows.intersection, 0)
    union = rows.union.copy()
    if rejected_target == "emptied":
        union = np.where(lost, rows.target, union)
    union = np.where(~target, np.where(rejected | (not union_of_accepted), 0, rows.predicted), union)
    iou = np.where(target, ratio(intersection, union), rejected)
    every = np.ones(len(rows), bool)
    return {
        "gIoU": (iou, every),
        "cIoU": (intersection, union),
        **precision(iou, target, thresholds, strict=False),
        "N-acc": (rejected & ~target, ~target),
        "T-acc": (~rejected & target, target),
    }


def ref_zom(rows: Rows, rejected: np.ndarray, *, empties: bool) -> Terms:
    """oIoU, mIoU and Pr@X over expressions with a target; Acc: the share of the others that are rejected.

    `empties`: a rejected expression has an empty mask (DeRIS), or the mask is scored as it is (DMMI).
    """
    none = ~rows.has_target
    scored = emptied(rows, rejected) if empties else rows
    return {**single_target(scored, chosen=rows.has_target), "Acc": (rejected & none, none)}


def emptied(rows: Rows, rejected: np.ndarray) -> Rows:
    """The rows with empty masks where they are rejected."""
    cleared = {name: np.where(rejected, 0, getattr(rows, name)) for name in ("intersection", "predicted")}
    return Rows({**rows.columns, **cleared})


def robust(rows: Rows, rejected: np.ndarray) -> Terms:
    """R-RefCOCO, by object: mIoU is the mean over objects of the mean IoU of their positives; oIoU sums positives;
    mRR the mean share of an object's negatives with an empty mask; rIoU = I / (U + pixels of its negatives).

    A rejected expression has an empty mask. Objects without positives have no mIoU, without negatives no mRR.
    """
    rows = emptied(rows, rejected)
    target, predicted, unit = rows.has_target, rows.predicted, rows.unit
    intersection, union = rows.intersection * target, rows.union * target
    first = np.zeros(len(rows), bool)
    first[np.unique(unit, return_index=True)[1]] = True

    def per_unit(column: np.ndarray) -> np.ndarray:
        return np.bincount(unit, weights=column, minlength=unit.max(initial=-1) + 1)[unit]

    positives, negatives = per_unit(target), per_unit(~target)
    mean_iou = ratio(per_unit(ratio(intersection, union) * target), positives)
    refused = ratio(per_unit(~target & (predicted == 0)), negatives)
    robust_iou = ratio(per_unit(intersection), per_unit(union) + per_unit(predicted * ~target))
    with_positive, with_negative = first & (positives > 0), first & (negatives > 0)
    return {
        "mIoU": (mean_iou * with_positive, with_positive),
        "oIoU": (intersection, union),
        "mRR": (refused * with_negative, with_negative),
        "rIoU": (robust_iou * with_positive, with_positive),
    }


def comprehension(rows: Rows) -> Terms:
    """REC: of the expressions with one target, which it is about, the share whose best box overlaps it enough."""
    one = rows.num_targets == 1
    return {"Acc@0.5": ((rows.boxes_matched > 0) & one, one)}


def generalized_comprehension(rows: Rows) -> Terms:
    """GREC: Pr@(F1=1) over all; an expression without target is right when no box survives, N-acc; T-acc: some does."""
    none = rows.boxes_predicted == 0
    return {"Pr@(F1=1)": (perfect_boxes(rows), np.ones(len(rows), bool)), **accuracies(rows, none)}


def perfect_boxes(rows: Rows) -> np.ndarray:
    """(R,) bool: F1 = 1."""
    return (rows.boxes_matched == rows.boxes_predicted) & (rows.boxes_matched == rows.boxes_target)


def refseg_default(rows: Rows, rejected: np.ndarray) -> Terms:
    """Ours: a rejected expression has an empty mask. oIoU, mIoU, Pr@X over expressions with a target; gIoU and cIoU as
    GRES over all; N-acc, T-acc."""
    general = generalized(rows, rejected, rejected_target="emptied", thresholds=())
    return {**general, **single_target(emptied(rows, rejected), chosen=rows.has_target)}


# What one answer is worth, from 0 to 1 --------------------------------------------------------------------------------


def worth(rows: Rows, rejected: np.ndarray, *, empties: bool) -> np.ndarray:
    """(R,) the IoU; without target, whether it is rejected. `empties`: a rejected expression has an empty mask."""
    scored = emptied(rows, rejected) if empties else rows
    return np.where(rows.has_target, ratio(scored.intersection, scored.union), rejected)


def robust_worth(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """(R,) the IoU; of a negative, whether its mask is empty."""
    rows = emptied(rows, rejected)
    return np.where(rows.has_target, ratio(rows.intersection, rows.union), rows.predicted == 0)


def comprehension_worth(rows: Rows) -> np.ndarray:
    """(R,) whether the best box matches the one target."""
    return ((rows.boxes_matched > 0) & (rows.num_targets == 1)).astype(np.float64)


def generalized_comprehension_worth(rows: Rows) -> np.ndarray:
    """(R,) whether the boxes are right, all of them and no others."""
    return perfect_boxes(rows).astype(np.float64)
