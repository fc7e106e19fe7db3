"""Score predictions: ground truth, predictions and protocols -> rows, in one pass over the predictions.

Only numbers are kept of a prediction: columns of N rows for N chosen expressions, in the order of the ground truth,
whatever the order of the predictions is. Answers are measured in blocks, and large files by several processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from refseg.datasets.annotations import complete_paths, open_annotations
from refseg.datasets.selection import in_splits
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target, parse_target
from refseg.errors import DataError, UsageError
from refseg.evaluation.breakdowns import TAG, breakdown, mean_of_groups
from refseg.evaluation.measure import MisfitError, Truth, measure
from refseg.evaluation.notes import MAX_IDS, IdList, SuspiciousFields
from refseg.evaluation.other_formats import SUFFIXES, entries_below, is_coco_results, open_predictions
from refseg.evaluation.overlap import union_rle
from refseg.evaluation.prediction_file import Answer, Part, in_blocks, parts_of, read_header, read_predictions
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import LEVEL, bootstrap
from refseg.files import sha256_of
from refseg.processes import process_map
from refseg.records import UNKNOWN, Expression

CACHED_IMAGES = 64
BLOCK = 256  # answers that are measured and counted together
PARTS_PER_WORKER = 4  # so that a new process is worth its start of about a second
SEED = 0  # of bootstrap intervals


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

    def __reduce__(self) -> tuple:
        chosen = np.zeros(self.store.num_expressions, bool)
        chosen[self.expressions] = True
        return (TruthIndex, (self.store, chosen, self.image_root))

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
    """Yield the rows of a file of predictions. With `absent_is_nothing`, expressions without a row follow."""
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
    yield from absent_answers(truths, seen)


def absent_answers(truths: TruthIndex, seen: np.ndarray) -> Iterator[Answer]:
    """Yield "nothing here" for expressions that were not seen: an empty mask, no box, probability 1."""
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


@dataclass(frozen=True)
class _Measured:
    """The K answers of a block whose expressions are in the data, on one view.

    Args:
        rows: Of the answers that fit.
        fits: (K,) which these are.
        resized: (K,) whose mask was resized to the grid.
        mask_objects: (K,) whose mask is scored as the only object.
        misfits: Index of each other answer, and why it does not fit.
    """

    rows: Rows
    fits: np.ndarray
    resized: np.ndarray
    mask_objects: np.ndarray
    misfits: dict[int, str]


@dataclass(frozen=True)
class _Block:
    """Some answers, measured on all views.

    Args:
        ids: Of the expressions, A.
        positions: (A,) in the ground truth; -1 for expressions of other data.
        absent: (A,) whether there was no prediction.
        views: The answers with a position, on each view.
        suspicious: Signs of mistakes in these.
    """

    ids: list[str]
    positions: np.ndarray
    absent: np.ndarray
    views: list[_Measured]
    suspicious: SuspiciousFields


def _measure_block(answers: Sequence[Answer], truths: TruthIndex, views: Sequence[View]) -> _Block:
    positions = np.array([truths.position.get(answer.expression_id, -1) for answer in answers], np.int64)
    known = [
        (answer, truths.truth(position), truths.expression(position))
        for answer, position in zip(answers, positions.tolist(), strict=True)
        if position >= 0
    ]
    suspicious = SuspiciousFields()
    for answer, truth, _ in known:
        suspicious.check(answer, truth.record.size)
    measured = []
    for view in views:
        rows, misfits = [], {}
        fits, resized, mask_objects = (np.zeros(len(known), bool) for _ in range(3))
        for number, (answer, truth, expression) in enumerate(known):
            try:
                row = measure(answer, truth, expression, view)
            except MisfitError as error:
                misfits[number] = f"{expression.expression_id} ({error})"
                continue
            rows.append(row)
            fits[number] = True
            if answer.absent:
                continue
            rle = answer.raw_rle
            resized[number] = rle is not None and tuple(rle["size"]) != view.grid_of(row.has_target, truth.record.size)
            has_objects = answer.raw_instances is not None or (view.instances is None and answer.boxes is not None)
            mask_objects[number] = (view.boxes or view.instances) is not None and not has_objects
        measured.append(_Measured(Rows.of(rows), fits, resized, mask_objects, misfits))
    absent = np.array([answer.absent for answer in answers], bool)
    return _Block([answer.expression_id for answer in answers], positions, absent, measured, suspicious)


@dataclass(frozen=True)
class _MeasurePart:
    """Measures a part of a prediction file, in a process of its own."""

    file: str | Path
    truths: TruthIndex
    views: Sequence[View]

    def __call__(self, part: Part) -> list[_Block]:
        answers = read_predictions(self.file, part)
        return [_measure_block(block, self.truths, self.views) for block in in_blocks(answers, BLOCK)]


class _ViewRows:
    """The rows of one view, as columns that are filled in any order."""

    def __init__(self, view: View, size: int) -> None:
        self.columns = {name: np.zeros(size, column.dtype) for name, column in Rows.of(()).columns.items()}
        count = len(view.instances.thresholds) if view.instances is not None else 0
        self.columns["matched"] = np.zeros((size, count), np.int64)
        self.filled = np.zeros(size, bool)
        self.mis_sized = IdList()
        self.resized = self.mask_objects = 0

    def add(self, positions: np.ndarray, new: np.ndarray, measured: _Measured) -> None:
        """Add the measured answers that are `new` at their positions, (K,) both."""
        chosen = positions[new & measured.fits]
        self.filled[chosen] = True
        if len(chosen):
            rows = measured.rows[new[measured.fits]]
            for name, column in self.columns.items():
                column[chosen] = rows.columns[name]
        self.resized += int((measured.resized & new).sum())
        self.mask_objects += int((measured.mask_objects & new).sum())
        for number, text in measured.misfits.items():
            if new[number]:
                self.mis_sized.add(text)

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
    views = views_of(protocols)
    blocks = (_measure_block(answers, truths, views) for answers in in_blocks(rows, BLOCK))
    return _score_blocks(blocks, truths, protocols, allow_partial=allow_partial)


def score_file(
    path: str | Path,
    truths: TruthIndex,
    protocols: Sequence[Protocol],
    *,
    min_score: float | None = None,
    absent_is_nothing: bool = False,
    allow_partial: bool = False,
    workers: int = 1,
    progress: Callable[[int], object] = lambda number: None,
) -> ScoreResult:
    """Score a file of predictions.

    Args:
        min_score: Score below which entries of COCO results are left out of masks.
        absent_is_nothing: Count expressions without a row as answered with "nothing here".
        allow_partial: As for `score_predictions`.
        workers: Number of processes that may read a large .jsonl file, with the same result. They start the calling
            script again, so this is for commands.
        progress: Called with each number of rows that were measured.
    """
    views = views_of(protocols)
    parts = parts_of(path) if workers > 1 and os.path.isfile(path) and str(path).endswith(".jsonl") else []
    workers = min(workers, len(parts) // PARTS_PER_WORKER)

    def blocks() -> Iterator[_Block]:
        seen = np.zeros(len(truths), bool)
        with ExitStack() as stack:
            if workers > 1:
                measure_part = _MeasurePart(path, truths, views)
                results = stack.enter_context(process_map(measure_part, parts, workers, chunksize=1))
                found = chain.from_iterable(results)
            else:
                rows = open_predictions(path, min_score=min_score)
                found = (_measure_block(answers, truths, views) for answers in in_blocks(rows, BLOCK))
            for block in found:
                seen[block.positions[block.positions >= 0]] = True
                progress(len(block.ids))
                yield block
        if absent_is_nothing:
            for answers in in_blocks(absent_answers(truths, seen), BLOCK):
                yield _measure_block(answers, truths, views)

    return _score_blocks(blocks(), truths, protocols, allow_partial=allow_partial)


def views_of(protocols: Sequence[Protocol]) -> list[View]:
    """Return the views on which protocols score masks, each once."""
    return list(dict.fromkeys(protocol.view.for_masks() for protocol in protocols))


def _score_blocks(
    blocks: Iterable[_Block], truths: TruthIndex, protocols: Sequence[Protocol], *, allow_partial: bool
) -> ScoreResult:
    # One pass over the predictions. Protocols that share a view share its rows.
    tables = {view: _ViewRows(view, len(truths)) for view in views_of(protocols)}
    seen, duplicate, extra, suspicious = np.zeros(len(truths), bool), IdList(), IdList(), SuspiciousFields()
    num_absent = 0
    for block in blocks:
        known = block.positions >= 0
        positions = block.positions[known]
        new = ~seen[positions]
        first = np.zeros(len(positions), bool)
        first[np.unique(positions, return_index=True)[1]] = True
        new &= first
        seen[positions] = True
        for number in np.flatnonzero(~known).tolist():
            extra.add(block.ids[number])
        for number in np.flatnonzero(known)[~new].tolist():
            duplicate.add(block.ids[number])
        num_absent += int(block.absent[known][new].sum())
        suspicious.update(block.suspicious)
        for table, measured in zip(tables.values(), block.views, strict=True):
            table.add(positions, new, measured)
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
        intervals = bootstrap(protocol.terms(rows), rows.image, num=resamples, seed=SEED)
        result["intervals"] = {name: list(ends) for name, ends in intervals.items()}
        result["bootstrap"] = {"level": LEVEL, "resamples": resamples, "seed": SEED, "of": "images"}
    if groups:
        result["by"] = {group: breakdown(rows, protocol, group, resamples=resamples) for group in groups}
        result["mean_of_groups"] = {
            group: mean_of_groups(lines, result["metrics"])
            for group, lines in result["by"].items()
            if group.startswith(TAG)
        }
    return result
