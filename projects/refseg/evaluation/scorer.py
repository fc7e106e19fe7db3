"""Score predictions: ground truth, predictions and protocols -> rows, in one pass over the predictions.

Only numbers are kept of a prediction: columns of N rows for N chosen expressions, in the order of the ground truth,
whatever the order of the predictions is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from refseg.datasets.annotations import complete_paths, open_annotations
from refseg.datasets.selection import in_splits
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target, parse_target
from refseg.errors import DataError, UsageError
from refseg.evaluation.breakdowns import breakdown
from refseg.evaluation.measure import MisfitError, Truth, measure
from refseg.evaluation.notes import MAX_IDS, IdList, SuspiciousFields
from refseg.evaluation.other_formats import SUFFIXES, entries_below, is_coco_results, open_predictions
from refseg.evaluation.overlap import union_rle
from refseg.evaluation.prediction_file import Answer, read_header
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import bootstrap
from refseg.files import sha256_of
from refseg.records import UNKNOWN, Expression

CACHED_IMAGES = 64
LEVEL, SEED = 95.0, 0  # of bootstrap intervals


# Ground truth ---------------------------------------------------------------------------------------------------------


class TruthIndex:
    """The chosen expressions of a store, by id.

    Keeps an id and two numbers per expression, and the last few images with their masks, since predictions mostly
    come image by image.

    Args:
        chosen: (X,) bool over the expressions of the store.
        image_root: Folder of the images and mask files.
    """

    def __init__(self, store: RecordStore, chosen: np.ndarray, image_root: str | Path) -> None:
        self.store = store
        self.image_root = Path(image_root)
        self.expressions = np.flatnonzero(chosen)
        self.images = store.image_of_expression[self.expressions]
        self.position = {store.expression_id(index): row for row, index in enumerate(self.expressions.tolist())}
        if len(self.position) != len(self):
            raise DataError("expressions of the ground truth share an id; `refseg data check` lists them")
        self._truth_of_image = lru_cache(CACHED_IMAGES)(self._read_image)

    def __len__(self) -> int:
        return len(self.expressions)

    def ids(self, positions: np.ndarray) -> list[str]:
        """Return the ids of the expressions at these positions, in the order of the ground truth."""
        wanted = set(positions.tolist())
        return [name for name, position in self.position.items() if position in wanted]

    def expression(self, position: int) -> Expression:
        return self.store.expression(int(self.expressions[position]))

    def truth(self, position: int) -> Truth:
        """Return the ground truth of the image of an expression."""
        return self._truth_of_image(int(self.images[position]))

    def _read_image(self, image: int) -> Truth:
        return Truth(complete_paths(self.store.record(image, ()), self.image_root))


@dataclass(frozen=True)
class Data:
    """The ground truth to score against, and its description for result files."""

    target: Target
    splits: list[str] | None
    truths: TruthIndex
    unreadable: int
    drop_no_target: bool = False

    @property
    def name(self) -> str:
        return self.target.name + (f":{','.join(self.splits)}" if self.splits else "")

    def describe(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {
            "set": self.target.name,
            "split": self.splits,
            "annotations": self.target.annotations,
            "sources": self.truths.store.info.get("sources", []),
            "images": len(np.unique(self.truths.images)),
            "expressions": len(self.truths),
            "sentences": "all",
            "no_target": "drop" if self.drop_no_target else "keep",
            "unreadable_annotations": self.unreadable,
        }


def open_data(argument: str, *, allow_partial: bool = False, drop_no_target: bool = False) -> Data:
    """Open the ground truth named by SET:SPLIT,SPLIT. Every sentence of the splits counts.

    Args:
        allow_partial: Go on without annotations that cannot be used.
        drop_no_target: Leave out expressions that refer to nothing.
    """
    # Find the set.
    if not argument.strip():
        raise UsageError("--data is empty. Pass SET:SPLIT, for example grefcoco:val or my.jsonl:test")
    targets, splits = parse_target(argument)
    if len(targets) > 1:
        names = ", ".join(str(target.main_file) for target in targets)
        raise UsageError(f"--data {argument} has several sets of annotations ({names}). Name one file or its folder")
    target = targets[0]
    store = open_annotations(**target.annotations)
    if store.problems and not store.num_expressions:
        raise DataError(
            f"{argument} is no ground truth: none of its {len(store.problems):,} rows can be used, the first: "
            f"{store.problems[0]}"
        )
    # Choose expressions.
    chosen = in_splits(store, splits)
    if drop_no_target:
        chosen = chosen & (store.num_referents > 0)
    if not chosen.any():
        raise DataError(f"{argument} has no expressions{' that refer to something' * drop_no_target}")
    # Refuse annotations that cannot be used.
    split_names = {store.splits[code] for code in np.unique(store.split_of_expression[chosen])} | {UNKNOWN}
    unreadable = [problem for problem in store.problems if problem.split in split_names]
    if unreadable and not allow_partial:
        raise DataError(
            f"{len(unreadable)} annotations of {argument} cannot be used, the first: {unreadable[0]}. `refseg data "
            "check` lists all of them; --allow-partial scores without them"
        )
    return Data(target, splits, TruthIndex(store, chosen, target.images), len(unreadable), drop_no_target)


# Predictions ----------------------------------------------------------------------------------------------------------


def describe_predictions(path: Path, *, min_score: float | None = None) -> dict[str, Any]:
    """Describe predictions for result files: the path, the hash and the header of a file (a folder has neither).

    With `min_score`, also how many entries of COCO results have a lower score ("below_min_score").
    """
    is_file = os.path.isfile(path)  # unlike Path.is_file, False where it may not be looked at
    header = read_header(path) if is_file and path.name.endswith(SUFFIXES) else {}
    try:
        digest = sha256_of(path) if is_file else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    facts: dict[str, Any] = {"file": str(path), "sha256": digest, "header": header}
    if min_score is not None and is_file and is_coco_results(path):
        facts["below_min_score"] = entries_below(path, min_score)
    return facts


def answers_of(
    path: str | Path, truths: TruthIndex, *, min_score: float | None = None, absent_is_nothing: bool = False
) -> Iterator[Answer]:
    """Yield the rows of a file of predictions.

    With `absent_is_nothing`, expressions without a row follow as "nothing here": an empty mask, no box, probability 1.
    """
    rows = open_predictions(path, min_score=min_score)
    if not absent_is_nothing:
        yield from rows
        return
    seen = np.zeros(len(truths), bool)
    for row in rows:
        position = truths.position.get(row.expression_id)
        if position is not None:
            seen[position] = True
        yield row
    for position in np.flatnonzero(~seen).tolist():
        empty = union_rle([], truths.truth(position).record.size)
        yield Answer(truths.expression(position).expression_id, empty, 1.0, [], absent=True)


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionCounts:
    """Numbers of predictions, against the expected expressions.

    Args:
        mis_sized: Predictions without a mask, or with a mask of neither the image's size nor the protocol's grid.
        resized: Masks of the image's size that were resized to the protocol's grid.
        mask_objects: Predictions without boxes and instances, whose whole mask (or the box around it) is scored as the
            only object.
        absent: Expressions without a prediction that count as "nothing here" (`answers_of`). They are not `missing`.
    """

    expected: int
    scored: int
    missing: int
    duplicate: int
    extra: int
    mis_sized: int
    resized: int
    mask_objects: int
    absent: int = 0


@dataclass(frozen=True)
class ScoreResult:
    """Rows and counts by protocol name.

    Args:
        rows: What could be scored, in the order of the ground truth.
        suspicions: Notes on what looks wrong in the predictions.
    """

    rows: dict[str, Rows]
    counts: dict[str, PredictionCounts]
    suspicions: list[str] = field(default_factory=list)


class _ViewRows:
    """The rows of one view, as columns that are filled in any order."""

    def __init__(self, view: View, size: int) -> None:
        self.view = view
        self.columns = {name: np.zeros(size, column.dtype) for name, column in Rows.of(()).columns.items()}
        count = len(view.instances.thresholds) if view.instances is not None else 0
        self.columns["matched"] = np.zeros((size, count), np.int64)
        self.filled = np.zeros(size, bool)
        self.mis_sized = IdList()
        self.resized = 0
        self.mask_objects = 0

    def add(self, position: int, row: Answer, truth: Truth, expression: Expression) -> None:
        try:
            measured = measure(row, truth, expression, self.view)
        except MisfitError as error:
            self.mis_sized.add(f"{expression.expression_id} ({error})")
            return
        for name, column in self.columns.items():
            column[position] = getattr(measured, name)
        self.filled[position] = True
        grid = self.view.grid_of(measured.has_target, truth.record.size)
        rle = row.raw_rle
        self.resized += rle is not None and not row.absent and tuple(rle["size"]) != grid
        has_objects = row.raw_instances is not None or (self.view.instances is None and row.boxes is not None)
        self.mask_objects += (self.view.boxes or self.view.instances) is not None and not has_objects and not row.absent

    def rows(self) -> Rows:
        return Rows(self.columns) if self.filled.all() else Rows(self.columns)[self.filled]


def score_predictions(
    rows: Iterable[Answer], truths: TruthIndex, protocols: Sequence[Protocol], *, allow_partial: bool = False
) -> ScoreResult:
    """Measure predictions on the grid of every protocol.

    Args:
        allow_partial: Count missing, duplicate, extra and mis-sized predictions instead of raising an error. Scores
            are then of the expressions that have a prediction, and the first of several duplicates counts.
    """
    # One pass over the predictions. Protocols that share a view share its rows.
    tables = {view: _ViewRows(view, len(truths)) for view in dict.fromkeys(p.view.for_masks() for p in protocols)}
    seen, duplicate, extra, suspicious = np.zeros(len(truths), bool), IdList(), IdList(), SuspiciousFields()
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
            suspicious.check(row, truth.record.size)
            for table in tables.values():
                table.add(position, row, truth, expression)
    # Refuse predictions that do not fit the data.
    unseen = np.flatnonzero(~seen)
    missing = IdList(len(unseen), truths.ids(unseen[:MAX_IDS]))
    of_protocol = {protocol.name: tables[protocol.view.for_masks()] for protocol in protocols}
    if not allow_partial:
        _refuse(
            missing,
            duplicate,
            IdList() if all(protocol.lists_objects for protocol in protocols) else extra,
            of_protocol,
            all_none=not truths.store.num_referents[truths.expressions[unseen]].any(),
        )
    unanswered = IdList(missing.number + num_absent, missing.ids or truths.ids(np.arange(min(MAX_IDS, len(truths)))))
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
            name: PredictionCounts(
                expected=len(truths),
                scored=int(table.filled.sum()),
                missing=missing.number,
                duplicate=duplicate.number,
                extra=extra.number,
                mis_sized=table.mis_sized.number,
                resized=table.resized,
                mask_objects=table.mask_objects,
                absent=num_absent,
            )
            for name, table in of_protocol.items()
        },
        suspicions=suspicious.notes(),
    )


def best_of(candidates: Sequence[Rows], protocol: Protocol) -> Rows:
    """Choose between several annotators, for a protocol that scores instances.

    An expression gets the row of the annotator with the best F1 of objects, of equal ones the first. Expressions that
    an annotator does not have are left out. Columns that only the first one has, such as tags, stay.
    """
    common = set.intersection(*(set(rows.expression_id) for rows in candidates))
    order = [name for name in candidates[0].expression_id if name in common]
    aligned = []
    for rows in candidates:
        place = {name: index for index, name in enumerate(rows.expression_id)}
        aligned.append(rows[np.array([place[name] for name in order], np.int64)])
    best = np.argmax([protocol.worth_of(rows) for rows in aligned], axis=0)
    every = np.arange(len(order))
    shared = {name for rows in aligned[1:] for name in rows.columns}
    chosen = {name: np.stack([rows.columns[name] for rows in aligned])[best, every] for name in shared}
    return Rows({**aligned[0].columns, **chosen})


def _refuse(missing: IdList, duplicate: IdList, extra: IdList, tables: dict[str, _ViewRows], *, all_none: bool) -> None:
    """Raise an error that lists what does not fit. `all_none`: every missing expression refers to nothing."""
    kinds = [
        (missing, "expression{s} without a prediction" + ", all of which refer to nothing" * all_none),
        (duplicate, "prediction{s} for an expression that has one already"),
        (extra, "prediction{s} for no expression of the data"),
    ]
    kinds += [
        (table.mis_sized, f"answer{{s}} without a mask of a size that fits {name}") for name, table in tables.items()
    ]
    lines = [f"{ids.number} {what.format(s='s' * (ids.number != 1))}: {ids}" for ids, what in kinds if ids.number]
    if missing.number:
        remedy = "--absent-is-nothing counts expressions without a prediction as answered with 'nothing here'"
        lines.append(remedy + "; --drop-no-target leaves out those that refer to nothing" * all_none)
    if lines:
        raise DataError("\n  ".join(["predictions and data do not fit (--allow-partial scores what does):", *lines]))


def result_of(
    protocol: Protocol, rows: Rows, counts: PredictionCounts, resamples: int | None, groups: Sequence[str]
) -> dict[str, Any]:
    """Return one protocol's part of a result file.

    Args:
        resamples: Number of bootstrap samples for intervals. None: no intervals.
        groups: Names of breakdowns.
    """
    result: dict[str, Any] = {
        "protocol": protocol.name,
        "metrics": protocol.score(rows),
        "details": protocol.describe(),
        "counts": asdict(counts),
    }
    if resamples:
        intervals = bootstrap(protocol.terms(rows), rows.image, num=resamples, seed=SEED, level=LEVEL)
        result["intervals"] = {name: list(ends) for name, ends in intervals.items()}
        result["bootstrap"] = {"level": LEVEL, "resamples": resamples, "seed": SEED, "of": "images"}
    if groups:
        result["by"] = {group: breakdown(rows, protocol, group, resamples=resamples) for group in groups}
    return result
