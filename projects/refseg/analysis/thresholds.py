"""Choose the thresholds of a model on a file of its predictions, without running it again.

`no_target_threshold` is the no-target probability above which a phrase is rejected. `instance_threshold` is the score
from which an instance counts, for models whose merged mask is the union of their instances. One pass over the file
keeps pixel counts, never masks, and gives the exact scores at every threshold.

Letters: R rows, S instances of all rows together, I instance thresholds, T no-target thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from refseg.analysis.calibration import threshold_columns
from refseg.errors import DataError, UsageError
from refseg.evaluation.measure import MisfitError, check_instances, measure
from refseg.evaluation.overlap import union_rle
from refseg.evaluation.prediction_file import Answer, is_number
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import TruthIndex

MAX_NO_TARGET = 1000  # no-target thresholds to try
MAX_INSTANCE = 100  # instance thresholds to try
_DIGITS = 9  # of percentages: smaller differences are rounding errors


@dataclass(frozen=True)
class Goal:
    """The metric to maximize, among the thresholds whose T-acc is at least `min_t_acc` (if given)."""

    metric: Literal["gIoU", "N-acc"] = "gIoU"
    min_t_acc: float | None = None

    def __str__(self) -> str:
        limit = "" if self.min_t_acc is None else f" with T-acc >= {self.min_t_acc:g}"
        return f"best {self.metric}{limit}"


@dataclass(frozen=True)
class Settings:
    """The thresholds of a model. None: the model has no such threshold, or it is unknown."""

    no_target_threshold: float | None = None
    instance_threshold: float | None = None

    @classmethod
    def of_header(cls, header: Mapping[str, Any]) -> Settings:
        """Read the thresholds with which a prediction file was made. Values that are no thresholds are ignored."""
        made_with = header.get("postprocess")
        made_with = made_with if isinstance(made_with, dict) else {}
        values = (made_with.get("no_target_threshold"), made_with.get("instance_threshold"))
        return cls(*(float(value) if is_number(value) and 0 <= value <= 1 else None for value in values))

    def known(self) -> dict[str, float]:
        """Return the thresholds that are not None, by their name in `model.postprocess`."""
        return {name: value for name, value in vars(self).items() if value is not None}


# Unions of instances --------------------------------------------------------------------------------------------------


class InstanceUnions:
    """Pixel counts of the union of each expression's k best instances, for every k.

    Pass the answers through `watch` on their way to `score_predictions`.

    Args:
        truths: Ground truth of the answers.
        view: View on which masks are measured.
    """

    def __init__(self, truths: TruthIndex, view: View) -> None:
        self.truths = truths
        self.view = view
        self._of_expression: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # scores (k,), pixels (k + 1, 2)

    def watch(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        for answer in answers:
            position = self.truths.position.get(answer.expression_id)
            if position is not None and answer.expression_id not in self._of_expression:
                try:
                    self._of_expression[answer.expression_id] = self._measure(answer, position)
                except MisfitError as error:
                    raise DataError(f"the prediction for {answer.expression_id}: {error}") from None
            yield answer

    def _measure(self, answer: Answer, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores, best first, and the pixels of the union of the first 0, 1, ... instances."""
        if answer.raw_instances is None and not answer.absent:
            raise MisfitError("it has no instances, though the header says that they make the mask")
        truth, expression = self.truths.truth(position), self.truths.expression(position)
        best_first = sorted(answer.raw_instances or (), key=lambda one: -one.score)
        check_instances(best_first, truth.record.size)
        outside = [one.score for one in best_first if not 0 <= one.score <= 1]
        if outside:
            raise MisfitError(f"the score {outside[0]:g} of an instance is outside 0..1. Apply a sigmoid to logits")
        union, pixels = union_rle([], truth.record.size), []
        for rle in [union, *(one.rle for one in best_first)]:
            union = union_rle([union, rle], truth.record.size)
            row = measure(Answer(answer.expression_id, union), truth, expression, self.view)
            pixels.append((row.intersection, row.predicted))
        return np.array([one.score for one in best_first], np.float64), np.array(pixels, np.int64)

    def table(self, rows: Rows) -> UnionTable:
        """Return the counts in the order of the rows.

        Raises:
            DataError: A merged mask of the rows is not the union of its instances.
        """
        scores, pixels = zip(*(self._of_expression[name] for name in rows.expression_id), strict=True)
        numbers = np.array([len(of_row) for of_row in scores])
        table = UnionTable(
            scores=np.concatenate(scores),
            row=np.repeat(np.arange(len(rows)), numbers),
            first=np.cumsum(numbers + 1) - numbers - 1,
            pixels=np.concatenate(pixels),
        )
        every = table.rows_at(rows, 0.0)
        wrong = np.flatnonzero((every.predicted != rows.predicted) | (every.intersection != rows.intersection))
        if len(wrong):
            raise DataError(
                f"{len(wrong):,} masks are not the union of their instances, though the header says so. The first is "
                f"the mask for {rows.expression_id[wrong[0]]}. Predict again with postprocess.instances=True"
            )
        return table


@dataclass(frozen=True)
class UnionTable:
    """The counts of `InstanceUnions` as arrays.

    Args:
        scores: (S,) scores of all instances.
        row: (S,) the row of each instance.
        first: (R,) place in `pixels` of each row's empty union. The unions of its 1, 2, ... best instances follow.
        pixels: (S + R, 2) intersection and predicted pixels of each union.
    """

    scores: np.ndarray
    row: np.ndarray
    first: np.ndarray
    pixels: np.ndarray

    def rows_at(self, rows: Rows, threshold: float) -> Rows:
        """Return the rows with masks of the instances whose score is at least the threshold."""
        numbers = np.bincount(self.row[self.scores >= threshold], minlength=len(rows))
        intersection, predicted = self.pixels[self.first + numbers].T
        return Rows({**rows.columns, "intersection": intersection, "predicted": predicted})

    def candidates(self, own: float | None) -> np.ndarray:
        """Return (I,) ascending thresholds to try: the file's own one, which keeps all its instances, and quantiles.

        Between two neighboring scores all thresholds keep the same instances, so the shortest number stands for all.
        """
        if not len(self.scores):
            return np.array([0.0 if own is None else own])
        distinct = np.unique(self.scores)
        lowest = distinct[0] if own is None else min(own, distinct[0])
        quantiles = np.quantile(self.scores, np.linspace(0, 1, MAX_INSTANCE), method="nearest")
        places = np.unique(np.searchsorted(distinct, quantiles))
        places = places[places > 0]  # the lowest score keeps everything, and so does the file's own threshold
        return np.concatenate([[lowest], shortest_between(distinct[places - 1], distinct[places], distinct[places])])


# Candidates and choice ------------------------------------------------------------------------------------------------


def shortest_between(low: np.ndarray, high: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return the numbers with the fewest decimals strictly between `low` and `high`, closest to the middle.

    Args:
        otherwise: Values to use where no such number exists, because the ends are neighboring floats.
    """
    middle, result = (low + high) / 2, np.array(otherwise, np.float64)
    missing = np.ones(len(result), bool)
    for digits in range(1, 17):
        rounded = np.round(middle, digits)
        fits = missing & (low < rounded) & (rounded < high)
        result[fits], missing = rounded[fits], missing & ~fits
    return result


def no_target_candidates(prob: np.ndarray, own: float) -> np.ndarray:
    """Return (T,) ascending thresholds that reject different phrases, and the file's own one.

    The first rejects every phrase whose probability is not 0, and the last, 1.0, rejects none. Between two neighboring
    probabilities all thresholds reject the same phrases, so the shortest number between them stands for all. At most
    `MAX_NO_TARGET` are tried, evenly spread over the probabilities.
    """
    distinct = np.unique(prob[~np.isnan(prob)])
    inner = shortest_between(distinct[:-1], distinct[1:], distinct[:-1])
    if len(inner) > MAX_NO_TARGET:
        inner = inner[np.linspace(0, len(inner) - 1, MAX_NO_TARGET).round().astype(int)]
    return np.unique(np.concatenate([[0.0], inner, [own, 1.0]]))


@dataclass(frozen=True)
class Choice:
    """Chosen thresholds, and the scores before and after.

    Args:
        goal: The goal that was used: gIoU instead of N-acc if no expression refers to nothing.
        own: Thresholds of the file.
        chosen: Thresholds with the best scores.
        before: The protocol at the file's thresholds, and its scores.
        after: The protocol at the chosen thresholds, and its scores.
        curves: By the name of a threshold, a line for each value tried, with the other threshold as chosen.
        notes: What readers must know to use the choice.
    """

    goal: Goal
    own: Settings
    chosen: Settings
    before: tuple[Protocol, dict[str, float]]
    after: tuple[Protocol, dict[str, float]]
    curves: dict[str, list[dict[str, float]]]
    notes: list[str]


def choose_thresholds(rows: Rows, unions: UnionTable | None, protocol: Protocol, goal: Goal, own: Settings) -> Choice:
    """Choose the thresholds with the best scores by a protocol. If there are two thresholds, all pairs are tried.

    Of several best ones, the highest T-acc decides, then the highest gIoU, the lowest instance threshold, and the
    highest no-target threshold. Without expressions that refer to nothing, N-acc is undefined, and gIoU decides.

    Args:
        rows: The predictions as measured on the protocol's view.
        unions: Unions of their instances, if these make the masks.
        own: The file's thresholds.

    Raises:
        DataError: There is nothing to choose, or no threshold fulfills the goal.
    """
    has_prob = not np.isnan(rows.no_target_prob).all()
    if not has_prob and unions is None:
        raise DataError(
            'there is no threshold to choose. No prediction has a no_target_prob, and the header has no "merged": '
            '"instances", which says that masks are the union of their instances. Use a model that has one of them'
        )
    if not rows.has_target.any():
        raise DataError("every expression refers to nothing. Choose thresholds on data with both kinds of expressions")

    # The protocol before and after. Without instances, a phrase must be rejected, which rule "head" would not do.
    own_prob = protocol.no_target.threshold if own.no_target_threshold is None else own.no_target_threshold
    before = protocol.with_no_target(threshold=own_prob)
    rule = protocol.no_target.rule if unions is None else "head-or-empty"

    # Every metric at every pair of thresholds, (I, T)
    probs = no_target_candidates(rows.no_target_prob, own_prob) if has_prob else np.array([own_prob])
    scores = np.array([np.nan]) if unions is None else unions.candidates(own.instance_threshold)
    columns = []
    for score in scores:
        rows_at = rows if unions is None else unions.rows_at(rows, score)
        columns.append(threshold_columns(rows_at, protocol.with_no_target(rule=rule, threshold=own_prob), probs))
    grid = {name: np.stack([column[name] for column in columns]) for name in columns[0]}

    # Choose, by gIoU if there is no N-acc, and score once more with all metrics of the protocol.
    if "N-acc" not in grid:
        goal = replace(goal, metric="gIoU")
    at_score, at_prob = best_pair(grid, goal)
    after = protocol.with_no_target(rule=rule, threshold=float(probs[at_prob]))
    chosen_rows = rows if unions is None else unions.rows_at(rows, scores[at_score])
    chosen = Settings(float(probs[at_prob]) if has_prob else None, None if unions is None else float(scores[at_score]))
    curves = {}
    if has_prob:
        curves["no_target_threshold"] = _lines(probs, {name: values[at_score] for name, values in grid.items()})
    if unions is not None:
        curves["instance_threshold"] = _lines(scores, {name: values[:, at_prob] for name, values in grid.items()})

    # What limits the choice
    notes = []
    if has_prob and rows.has_target.all():
        notes.append(
            "no expression of the data refers to nothing, so N-acc is undefined and gIoU decided. It is best if no "
            "phrase is rejected. Choose no_target_threshold on data with such expressions"
        )
    if unions is not None and at_score == 0 and scores[0] > 0:
        notes.append(
            f"the file holds no instances with a score below {scores[0]:g}, so lower thresholds were not tried. To try "
            "them, predict with --cfg-options model.postprocess.instance_threshold=0"
        )
    return Choice(
        goal=goal,
        own=Settings(own_prob if has_prob else None, None if unions is None else float(scores[0])),
        chosen=chosen,
        before=(before, before.score(rows)),
        after=(after, after.score(chosen_rows)),
        curves=curves,
        notes=notes,
    )


def best_pair(grid: Mapping[str, np.ndarray], goal: Goal) -> tuple[int, int]:
    """Return the place of the best pair of thresholds in metrics (I, T), as `choose_thresholds` describes it."""
    rounded = {name: values.round(_DIGITS) for name, values in grid.items()}
    t_acc = rounded["T-acc"]
    allowed = t_acc >= (-math.inf if goal.min_t_acc is None else goal.min_t_acc)
    if not allowed.any():
        raise UsageError(
            f"no threshold reaches a T-acc of {goal.min_t_acc:g}. The highest is {t_acc.max():.2f}, because empty "
            "masks count as rejected. Pass a lower --min-t-acc"
        )
    wanted = np.where(allowed, rounded[goal.metric], -math.inf)
    at_score, at_prob = np.indices(t_acc.shape)
    keys = (at_prob, -at_score, rounded["gIoU"], t_acc, wanted)  # the last key is the first to decide
    best = np.lexsort([key.ravel() for key in keys])[-1]
    return int(at_score.flat[best]), int(at_prob.flat[best])


def _lines(thresholds: np.ndarray, columns: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    columns = {name: column.round(_DIGITS) + 0.0 for name, column in columns.items()}  # + 0.0 turns -0.0 into 0.0
    return [
        {"threshold": float(value)} | {name: float(column[i]) for name, column in columns.items()}
        for i, value in enumerate(thresholds)
    ]
