"""Ground truth, answers, and results of a score: what `refseg score`, `compare`, `report` and `probe` share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refseg.datasets.annotations import open_annotations
from refseg.datasets.selection import in_splits
from refseg.datasets.targets import Target, parse_target
from refseg.errors import DataError, UsageError
from refseg.evaluation.breakdowns import breakdown
from refseg.evaluation.other_formats import SUFFIXES, entries_below, is_coco_results, open_predictions
from refseg.evaluation.prediction_file import PredictionRow, read_header
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import Counts, TruthIndex, with_absent
from refseg.evaluation.statistics import bootstrap
from refseg.files import sha256_of
from refseg.records import UNKNOWN

LEVEL, SEED = 95.0, 0  # of intervals


@dataclass(frozen=True)
class Data:
    """The ground truth, and what a result says of it."""

    target: Target
    splits: list[str] | None
    truths: TruthIndex
    unreadable: int
    drop_no_target: bool = False

    @property
    def name(self) -> str:
        return self.target.name + (f":{','.join(self.splits)}" if self.splits else "")

    def describe(self) -> dict[str, Any]:
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
    """SET:SPLIT,SPLIT. Every sentence of the splits counts, or, with `drop_no_target`, every one that refers to
    something."""
    if not argument.strip():
        raise UsageError("--data is empty: it takes SET:SPLIT, as in grefcoco:val or my.jsonl:test")
    targets, splits = parse_target(argument)
    if len(targets) > 1:
        names = ", ".join(str(target.main_file) for target in targets)
        raise UsageError(f"--data {argument} has several sets of annotations ({names}): name a file or its folder")
    target = targets[0]
    store = open_annotations(**target.annotations)
    if store.problems and not store.num_expressions:
        raise DataError(
            f"{argument} is no ground truth: none of its {len(store.problems):,} rows can be used, the first: "
            f"{store.problems[0]}"
        )
    chosen = in_splits(store, splits)
    if drop_no_target:
        chosen = chosen & (store.num_referents > 0)
    if not chosen.any():
        raise DataError(f"{argument} has no expressions{' that refer to something' * drop_no_target}")
    unreadable = _unreadable(store, chosen)
    if unreadable and not allow_partial:
        raise DataError(
            f"{len(unreadable)} annotations of {argument} cannot be used, the first: {unreadable[0]}. `refseg data "
            "check` lists all; --allow-partial scores without them"
        )
    return Data(target, splits, TruthIndex(store, chosen, target.images), len(unreadable), drop_no_target)


def _unreadable(store: Any, chosen: np.ndarray) -> list[Any]:

    names = {store.splits[code] for code in np.unique(store.split_of_expression[chosen])} | {UNKNOWN}
    return [problem for problem in store.problems if problem.split in names]


def describe_predictions(path: Path, *, min_score: float | None = None) -> dict[str, Any]:
    """The file, what it says it was made with, and its hash; a folder has neither. Of COCO results, how many entries
    are of a lower score, if one was asked for."""

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
) -> Iterator[PredictionRow]:
    """The rows of a file of predictions, with "nothing here" for expressions that it leaves out, if asked for."""

    rows = open_predictions(path, min_score=min_score)
    return with_absent(rows, truths) if absent_is_nothing else rows


def result_of(
    protocol: Protocol, rows: Rows, counts: Counts, resamples: int | None, groups: Sequence[str]
) -> dict[str, Any]:
    """One protocol's part of the JSON."""
    terms = protocol.terms(rows)
    result: dict[str, Any] = {
        "protocol": protocol.name,
        "metrics": protocol.score(rows),
        "details": protocol.describe(),
        "counts": asdict(counts),
    }
    if resamples:
        found = bootstrap(terms, rows.image, num=resamples, seed=SEED, level=LEVEL)
        result["intervals"] = {name: list(ends) for name, ends in found.items()}
        result["bootstrap"] = {"level": LEVEL, "resamples": resamples, "seed": SEED, "of": "images"}
    if groups:
        result["by"] = {group: breakdown(rows, protocol, group, resamples=resamples) for group in groups}
    return result
