"""Predictions, ground truth and protocols -> rows, in one pass over the predictions.

Nothing is kept of a prediction but its numbers: columns of N rows for N chosen expressions, in their order, whatever
the order of the predictions is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from refseg.datasets.annotations import complete_paths
from refseg.datasets.store import RecordStore
from refseg.errors import DataError
from refseg.evaluation.areas import union_rle
from refseg.evaluation.measure import Answer, Truth, measure, misfit, scored_box
from refseg.evaluation.prediction_file import PredictedInstance, PredictionRow
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.suspicions import SHOWN, Found, Suspicions
from refseg.records import Expression

CACHED_IMAGES = 64


class TruthIndex:
    """The chosen expressions of a store, by id. `chosen`: (X,) bool over its expressions.

    Keeps an id and two numbers per expression, and the last few images with what was made of their masks, since
    predictions mostly come image by image.
    """

    def __init__(self, store: RecordStore, chosen: np.ndarray, image_root: str | Path) -> None:
        self.store = store
        self.image_root = Path(image_root)
        self.expressions = np.flatnonzero(chosen)
        self.images = store.image_of_expression[self.expressions]
        self.position = {store.expression_id(index): row for row, index in enumerate(self.expressions.tolist())}
        if len(self.position) != len(self):
            raise DataError("expressions of the ground truth share an id; `refseg data check` lists them")
        self._truths: OrderedDict[int, Truth] = OrderedDict()

    def __len__(self) -> int:
        return len(self.expressions)

    def has_target(self) -> np.ndarray:
        """(N,) bool."""
        return self.store.num_referents[self.expressions] > 0

    def ids(self, positions: np.ndarray) -> list[str]:
        wanted = set(positions.tolist())
        return [name for name, position in self.position.items() if position in wanted]

    def expression(self, position: int) -> Expression:
        return self.store.expression(int(self.expressions[position]))

    def truth(self, position: int) -> Truth:
        image = int(self.images[position])
        if image not in self._truths:
            self._truths[image] = Truth(complete_paths(self.store.record(image, ()), self.image_root))
            if len(self._truths) > CACHED_IMAGES:
                self._truths.popitem(last=False)
        self._truths.move_to_end(image)
        return self._truths[image]


@dataclass(frozen=True)
class Counts:
    """Of predictions against expected expressions. `mis_sized`: masks of neither their image's size nor the protocol's
    grid, or none. `resized`: masks of the image's size that the protocol compares on a grid. `mask_boxes`: answers of
    which the box around the whole mask is scored, for want of boxes and instances. `absent`: expressions without a
    prediction that count as answered with "nothing here" (`with_absent`); they are not `missing`."""

    expected: int
    scored: int
    missing: int
    duplicate: int
    extra: int
    mis_sized: int
    resized: int
    mask_boxes: int
    absent: int = 0


@dataclass(frozen=True)
class ScoreResult:
    """By names of protocols. `rows` hold what could be scored, in the order of the ground truth. `suspicions`: notes on
    what looks wrong in the predictions."""

    rows: dict[str, Rows]
    counts: dict[str, Counts]
    suspicions: list[str] = field(default_factory=list)


class _Table:
    """The rows of one view, as columns that are filled in any order."""

    def __init__(self, view: View, size: int) -> None:
        self.view = view
        self.columns = {name: np.zeros(size, column.dtype) for name, column in Rows.of(()).columns.items()}
        self.filled = np.zeros(size, bool)
        self.mis_sized = Found()
        self.resized = 0
        self.mask_boxes = 0

    def add(self, position: int, row: PredictionRow, truth: Truth, expression: Expression) -> None:
        size = truth.record.size
        grid = self.view.grid_of(bool(expression.referents), size)
        try:
            boxes = None if self.view.boxes is None else boxes_of(row, size)
            answer = Answer(row.mask, row.no_target_prob, boxes)
            problem = misfit(answer, size, grid, self.view)
        except ValueError as error:
            problem = str(error)
        if problem:
            self.mis_sized.add(f"{expression.expression_id} ({problem})")
            return
        measured = measure(answer, truth, expression, self.view)
        for name, column in self.columns.items():
            column[position] = getattr(measured, name)
        self.filled[position] = True
        self.resized += row.mask is not None and not row.absent and tuple(row.mask["size"]) != grid
        self.mask_boxes += self.view.boxes is not None and boxes is None

    def rows(self) -> Rows:
        return Rows(self.columns) if self.filled.all() else Rows(self.columns)[self.filled]


def boxes_of(row: PredictionRow, size: tuple[int, int]) -> list[list[float]] | None:
    """(x, y, width, height, score) of each: as told, or around the instances; None of a row with neither."""
    if row.boxes is not None or row.instances is None:
        return row.boxes
    check_instances(row.instances, size)
    return [scored_box(instance.mask, instance.score) for instance in row.instances]


def check_instances(instances: Sequence[PredictedInstance], size: tuple[int, int]) -> None:
    """Their masks have the image's size, or a ValueError says which has not."""
    for number, instance in enumerate(instances):
        height, width = instance.mask["size"]
        if (height, width) != tuple(size):
            raise ValueError(f"instances[{number}] is {height} x {width}, not {size[0]} x {size[1]} as the image")


def with_absent(rows: Iterable[PredictionRow], truths: TruthIndex) -> Iterator[PredictionRow]:
    """The rows, then "nothing here" for every expression that has none: an empty mask, no box, and probability 1."""
    seen = np.zeros(len(truths), bool)
    for row in rows:
        position = truths.position.get(row.expression_id)
        if position is not None:
            seen[position] = True
        yield row
    for position in np.flatnonzero(~seen).tolist():
        nothing = union_rle([], truths.truth(position).record.size)
        yield PredictionRow(truths.expression(position).expression_id, nothing, 1.0, [], absent=True)


def score_predictions(
    rows: Iterable[PredictionRow], truths: TruthIndex, protocols: Sequence[Protocol], *, allow_partial: bool = False
) -> ScoreResult:
    """Rows of every protocol. Missing, duplicate, extra and mis-sized predictions are an error, or, with
    `allow_partial`, are counted: scores are then of the expressions that are there, and of duplicates the first
    counts."""
    tables = {view: _Table(view, len(truths)) for view in dict.fromkeys(measured_on(p.view) for p in protocols)}
    seen, duplicate, extra, suspicions = np.zeros(len(truths), bool), Found(), Found(), Suspicions()
    num_absent = 0
    for row in rows:
        position = truths.position.get(row.expression_id)
        if position is None:
            extra.add(row.expression_id)
        elif seen[position]:
            duplicate.add(row.expression_id)
        else:
            seen[position] = True
            truth, expression = truths.truth(position), truths.expression(position)
            num_absent += row.absent
            suspicions.look(row, truth.record.size)
            for table in tables.values():
                table.add(position, row, truth, expression)
    unseen = np.flatnonzero(~seen)
    missing = Found(len(unseen), truths.ids(unseen[:SHOWN]))
    of_protocol = {protocol.name: tables[measured_on(protocol.view)] for protocol in protocols}
    if not allow_partial:
        _refuse(missing, duplicate, extra, of_protocol, all_none=not truths.has_target()[unseen].any())
    unanswered = Found(missing.number + num_absent, missing.shown or truths.ids(np.arange(min(SHOWN, len(truths)))))
    for name, table in of_protocol.items():
        if not table.filled.any() or num_absent == len(truths):
            raise DataError(
                f"no prediction can be scored by {name}: of {len(truths)} expressions {unanswered.number} are missing "
                f"({unanswered}), {table.mis_sized.number} have no mask of a size that fits ({table.mis_sized}), and "
                f"{extra.number} predictions are of other expressions ({extra}). Are they of another split?"
            )
    return ScoreResult(
        rows={name: table.rows() for name, table in of_protocol.items()},
        counts={
            name: Counts(
                expected=len(truths),
                scored=int(table.filled.sum()),
                missing=missing.number,
                duplicate=duplicate.number,
                extra=extra.number,
                mis_sized=table.mis_sized.number,
                resized=table.resized,
                mask_boxes=table.mask_boxes,
                absent=num_absent,
            )
            for name, table in of_protocol.items()
        },
        suspicions=suspicions.notes(),
    )


def measured_on(view: View) -> View:
    """The view as far as masks that are already made depend on it: protocols that differ in how logits become a mask
    share their rows."""
    return replace(view, **{name: getattr(_PLAIN, name) for name in _OF_LOGITS})


_PLAIN = View()
_OF_LOGITS = ("interpolation", "align_corners", "resize", "threshold", "strict")


def _refuse(missing: Found, duplicate: Found, extra: Found, tables: dict[str, _Table], *, all_none: bool) -> None:
    kinds = [
        (missing, "expression{s} without a prediction" + ", all of which refer to nothing" * all_none),
        (duplicate, "prediction{s} for an expression that has one already"),
        (extra, "prediction{s} for no expression of the data"),
    ]
    kinds += [
        (table.mis_sized, f"answer{{s}} without a mask of a size that {name} knows")
        for name, table in tables.items()
        if table.mis_sized.number
    ]
    lines = [f"{f.number} {what.format(s='s' * (f.number != 1))}: {f}" for f, what in kinds if f.number]
    if missing.number:
        remedy = "--absent-is-nothing counts expressions without a prediction as answered with 'nothing here'"
        lines.append(remedy + "; --drop-no-target leaves out those that refer to nothing" * all_none)
    if lines:
        raise DataError("\n  ".join(["predictions and data do not fit (--allow-partial scores what does):", *lines]))
