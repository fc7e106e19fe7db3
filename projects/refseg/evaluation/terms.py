"""Metrics as functions of sums over rows, mostly ratios: value = 100 * sum(numerators) / sum(denominators).

In this form, breakdowns and bootstrap intervals work for every metric. Functions take rows and which of them are
`rejected` ("nothing here"; protocols without such a rule ignore it), and return a term per metric: a pair of (R,)
arrays, or a `Formula`. Metrics of units (an object with all its expressions, as in R-RefCOCO) stand on the unit's first
row.

Pixel counts stay int64 until the division, because a split has hundreds of millions of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refseg.evaluation.rows import Rows


class Formula(NamedTuple):
    """A metric that is not a ratio: K columns (R, K) of rows, and its value (S,) for S sums (S, K) of them."""

    columns: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]


Term = tuple[np.ndarray, np.ndarray] | Formula
Terms = dict[str, Term]
HALF_TO_NINE = (0.5, 0.6, 0.7, 0.8, 0.9)
HALF_TO_95 = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide elementwise, with 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def columns_of(term: Term) -> np.ndarray:
    """Return the columns (R, K) of a metric, which are summed over rows."""
    return term.columns if isinstance(term, Formula) else np.stack(np.broadcast_arrays(*term), axis=1)


def percent(term: Term, sums: np.ndarray) -> np.ndarray:
    """Return a metric in percent (S,) for sums (S, K) of its columns; NaN without a denominator, or if all are 0."""
    if isinstance(term, Formula):
        return np.where(sums.any(1), 100.0 * term.value(sums), np.nan)
    numerator, denominator = sums.T
    return np.divide(100.0 * numerator, denominator, out=np.full(len(sums), np.nan), where=denominator > 0)


def values(terms: Terms) -> dict[str, float]:
    """Return percentages. Metrics without a denominator (T-acc if nothing has a target) are left out."""
    found = {name: float(percent(term, columns_of(term).sum(0, keepdims=True))[0]) for name, term in terms.items()}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def precision(iou: np.ndarray, chosen: np.ndarray, thresholds: Sequence[float], *, strict: bool) -> Terms:
    """Pr@X: share of the chosen rows whose IoU is at least X (above X if `strict`)."""
    return {
        f"Pr@{threshold}": (((iou > threshold) if strict else (iou >= threshold)) & chosen, chosen)
        for threshold in thresholds
    }


def accuracies(rows: Rows, rejected: np.ndarray) -> Terms:
    """N-acc: share of no-target expressions that are rejected. T-acc: share of the others that are not."""
    none = ~rows.has_target
    return {"N-acc": (rejected & none, none), "T-acc": (~rejected & rows.has_target, rows.has_target)}


def matthews(sums: np.ndarray, slack: float = 0.0) -> np.ndarray:
    """Return the Matthews correlation (S,) of numbers (S, 4): found, false alarms, missed, rightly not reported."""
    tp, fp, fn, tn = sums.astype(np.float64).T
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, root + slack, out=np.zeros(len(sums)), where=root + slack > 0)


def rejections(rows: Rows, rejected: np.ndarray) -> Terms:
    """N-F1 and N-MCC: F1 and Matthews correlation of "rejected" with "refers to nothing"; undefined without both kinds
    of expressions."""
    none = ~rows.has_target
    columns = np.stack([rejected & none, rejected & ~none, ~rejected & none, ~rejected & ~none], 1)

    def if_both(value: Callable[[np.ndarray], np.ndarray]) -> Formula:
        def of_sums(sums: np.ndarray) -> np.ndarray:
            tp, fp, fn, tn = sums.T
            return np.where((tp + fn > 0) & (fp + tn > 0), value(sums), np.nan)

        return Formula(columns, of_sums)

    def f1(sums: np.ndarray) -> np.ndarray:
        tp, fp, fn, _ = sums.T
        return 2 * tp / np.maximum(2 * tp + fp + fn, 1)

    return {"N-F1": if_both(f1), "N-MCC": if_both(matthews)}


def single_target(rows: Rows, rejected: np.ndarray, *, chosen: np.ndarray | None = None, strict: bool = False) -> Terms:
    """oIoU, mIoU and Pr@X as in LAVT's test.py, which rejects nothing. Two empty masks have IoU 0."""
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
    """gIoU, cIoU, Pr@X over expressions with a target, N-acc and T-acc, as in the evaluators of GRES.

    An expression without a target counts as IoU 1 without pixels if it is rejected, else as IoU 0 with its predicted
    pixels.

    Args:
        rejected_target: How a rejected expression with a target counts. "raw" (ReLA): no intersection, but the union
            with the predicted mask. "emptied" (DeRIS): as an empty mask. "kept" (GSVA): as if it were not rejected.
        union_of_accepted: Whether the predicted pixels of an expression without a target count in cIoU (GSVA counts
            them only on gRefCOCO).
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
        **accuracies(rows, rejected),
    }


def ref_zom(rows: Rows, rejected: np.ndarray, *, empties: bool) -> Terms:
    """oIoU, mIoU and Pr@X over expressions with a target. Acc: share of the others that are rejected.

    `empties`: rejection empties the mask (DeRIS), or leaves it as it is (DMMI).
    """
    none = ~rows.has_target
    scored = emptied(rows, rejected) if empties else rows
    return {**single_target(scored, rejected, chosen=rows.has_target), "Acc": (rejected & none, none)}


def emptied(rows: Rows, rejected: np.ndarray) -> Rows:
    """Return the rows with empty masks where they are rejected."""
    cleared = {name: np.where(rejected, 0, getattr(rows, name)) for name in ("intersection", "predicted")}
    return Rows({**rows.columns, **cleared})


def robust(rows: Rows, rejected: np.ndarray) -> Terms:
    """Metrics of R-RefCOCO, by object. Rejection empties the mask.

    mIoU: mean over objects of the mean IoU of their positives. oIoU: over all positives. mRR: mean share of an object's
    negatives with an empty mask. rIoU: mean over objects of I / (U + predicted pixels of the negatives). Objects
    without positives do not count in mIoU, and those without negatives do not count in mRR.
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


def comprehension(rows: Rows, rejected: np.ndarray) -> Terms:
    """REC: share of the expressions with one target whose best box matches it."""
    return {"Acc@0.5": (best_box_matches(rows, rejected), rows.num_targets == 1)}


def comprehension_by_iou(rows: Rows, rejected: np.ndarray) -> Terms:
    """Ref-L4: shares of the expressions with one target whose best box has an IoU above 0.5, 0.75, and 0.9. mAcc: the
    mean of these shares over ten IoUs."""
    single = rows.num_targets == 1
    hits = {iou: (rows.box_iou > iou) & single for iou in HALF_TO_95}
    accuracy = {f"Acc@{iou}": (hits[iou], single) for iou in (0.5, 0.75, 0.9)}
    return {**accuracy, "mAcc": (np.mean(list(hits.values()), axis=0), single)}


def comprehension_or_nothing(rows: Rows, rejected: np.ndarray) -> Terms:
    """FineCops-Ref: Acc@0.5 of REC, whether rejected or not; N-acc and T-acc. An answer without a box is rejected."""
    return {**comprehension(rows, rejected), **accuracies(rows, rejected | (rows.boxes_predicted == 0))}


def generalized_comprehension(rows: Rows, rejected: np.ndarray) -> Terms:
    """GREC: Pr@(F1=1) over all expressions, N-acc and T-acc. Rejected means that no box reaches the score limit."""
    every = np.ones(len(rows), bool)
    return {"Pr@(F1=1)": (all_boxes_match(rows, rejected), every), **accuracies(rows, rows.boxes_predicted == 0)}


def refseg_default(rows: Rows, rejected: np.ndarray) -> Terms:
    """Metrics of refseg's own protocol. Rejection empties the mask.

    gIoU and cIoU are over all expressions as in GRES; oIoU, mIoU and Pr@X are over expressions with a target.
    """
    general = generalized(rows, rejected, rejected_target="emptied", thresholds=())
    targets = single_target(emptied(rows, rejected), rejected, chosen=rows.has_target)
    return {**general, **rejections(rows, rejected), **targets}


# Instances: cgF1 of SA-Co ---------------------------------------------------------------------------------------------

SLACK = 1e-4  # in the official denominators of precision, recall and F1
RATE_SLACK = 1e-6  # in those of IL_MCC and IL_FPR


def mean_f1(matched: np.ndarray, predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return F1 of numbers of objects (N,), `matched` (N, T), the mean over T thresholds."""
    precision, recall = matched / (predicted[:, None] + SLACK), matched / (target[:, None] + SLACK)
    return (2 * precision * recall / (precision + recall + SLACK)).sum(1) / max(matched.shape[1], 1)


def answered(rows: Rows, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return matched (R, T), predicted (R,) and target (R,) numbers of objects. A rejected answer has none."""
    return np.where(rejected[:, None], 0, rows.matched), np.where(rejected, 0, rows.predicted_objects), rows.objects


def concepts(rows: Rows, rejected: np.ndarray) -> Terms:
    """cgF1 = pmF1 x IL_MCC and its parts, as SA-Co's evaluator. R rows are pairs of an image and a phrase.

    pmF1: F1 of objects, with numbers summed over pairs with a target, mean over IoU thresholds. IL_MCC: Matthews
    correlation of "something is answered" with "there is a target". IL_FPR: share of pairs without a target that are
    answered. positive_macro_F1: mean of the F1 of each pair with a target and an answer. Pairs with a target and no
    answer do not count in it.
    """
    matched, predicted, target = answered(rows, rejected)
    there, seen = target > 0, predicted > 0  # (R,)
    count = matched.shape[1]
    rates = np.stack([there & seen, ~there & seen, there & ~seen, ~there & ~seen], 1)  # TP, FP, FN, TN of pairs
    sums = np.concatenate([matched, (predicted * there)[:, None], target[:, None], rates], 1)

    def micro(sums: np.ndarray, chosen: slice) -> np.ndarray:
        return mean_f1(sums[:, :count][:, chosen], sums[:, count], sums[:, count + 1])

    def correlation(sums: np.ndarray) -> np.ndarray:
        return matthews(sums[:, count + 2 :], RATE_SLACK)

    terms: Terms = {}
    for name, chosen in (("", slice(None)), ("@0.5", slice(0, 1)), ("@0.75", slice(5, 6))):
        terms[f"cgF1{name}"] = Formula(sums, lambda s, chosen=chosen: micro(s, chosen) * correlation(s))
        terms[f"pmF1{name}"] = Formula(sums, lambda s, chosen=chosen: micro(s, chosen))
    terms["IL_MCC"] = Formula(sums, correlation)
    terms["IL_FPR"] = Formula(sums, lambda s: s[:, count + 3] / (s[:, count + 3] + s[:, count + 5] + RATE_SLACK))
    terms["positive_macro_F1"] = (f1_of_pairs(rows, rejected) * there, there & seen)
    return terms


def f1_of_pairs(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """Return (R,): the F1 of objects of each pair, mean over IoU thresholds; 1 if nothing is there and answered."""
    matched, predicted, target = answered(rows, rejected)
    return np.where((predicted + target) == 0, 1.0, mean_f1(matched, predicted, target))


def f1_of_positives(rows: Rows, rejected: np.ndarray) -> Terms:
    """PBench: mean over pairs with a target of the F1 of instances, over ten IoUs and at IoU 0.5; N-acc and T-acc.

    A pair without an answer has F1 0, and is rejected.
    """
    matched, predicted, target = answered(rows, rejected)
    there = target > 0
    f1 = 2 * matched / np.maximum(predicted + target, 1)[:, None]
    return {
        "macro_F1": (f1.sum(1) / len(HALF_TO_95) * there, there),
        "macro_F1@0.5": (f1[:, :1].sum(1) * there, there),
        **accuracies(rows, predicted == 0),
    }


# Worth of one answer, from 0 to 1 -------------------------------------------------------------------------------------


def worth(rows: Rows, rejected: np.ndarray, *, empties: bool = True) -> np.ndarray:
    """Return (R,): the IoU, or, without a target, whether it is rejected. `empties`: rejection empties the mask."""
    scored = emptied(rows, rejected) if empties else rows
    return np.where(rows.has_target, ratio(scored.intersection, scored.union), rejected)


def robust_worth(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """Return (R,): the IoU, or, for a negative, whether its mask is empty."""
    return worth(rows, rejected | (rows.predicted == 0))


def best_box_matches(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """Return (R,) bool: whether the best box matches the one target."""
    return (rows.boxes_matched > 0) & (rows.num_targets == 1)


def best_box_or_rejection(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """Return (R,) bool: whether the best box matches the one target, or, without a target, whether it is rejected."""
    none = rejected | (rows.boxes_predicted == 0)
    return np.where(rows.has_target, best_box_matches(rows, rejected), none)


def all_boxes_match(rows: Rows, rejected: np.ndarray) -> np.ndarray:
    """Return (R,) bool: whether the boxes match one to one (F1 = 1)."""
    return (rows.boxes_matched == rows.boxes_predicted) & (rows.boxes_matched == rows.boxes_target)
