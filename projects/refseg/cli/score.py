"""`refseg score`: a file of predictions, of any model, scored by named protocols."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refseg.cli.options import (
    add_shared_arguments,
    at_least,
    check_min_score,
    chosen_groups,
    chosen_protocols,
)
from refseg.data_tools.findings import aligned
from refseg.datasets.targets import Target, data_root
from refseg.errors import DataError, UsageError
from refseg.evaluation.notes import header_line, notes_of
from refseg.evaluation.prediction_file import PredictionRow
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import Counts, ScoreResult, TruthIndex, score_predictions, with_absent
from refseg.evaluation.tags import tag_columns, with_columns
from refseg.terminal import printable, write_whole

LEVEL, SEED = 95.0, 0  # of intervals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("predictions", help="prediction file, folder of PNGs, or COCO results; see below")
    add_shared_arguments(parser, protocols="NAME[,NAME]", by="")
    add(
        "--ci",
        nargs="?",
        type=at_least(1),
        const=1000,
        metavar="N",
        help="intervals of 95 %% from N resamples of images",
    )
    add("--calibration", action="store_true", help="confusion, calibration and threshold curve of 'nothing here'")
    add("--alignment", action="store_true", help="how well instances' weights find their words (RefShapes)")


def main(args: argparse.Namespace) -> int:
    protocols, groups = chosen_protocols(args), chosen_groups(args)
    check_min_score(args, [args.predictions])
    with data_root(args.data_root):
        data = open_data(args.data, allow_partial=args.allow_partial, drop_no_target=args.drop_no_target)
        columns = tag_columns(data.truths, groups)
        predictions = describe_predictions(Path(args.predictions), min_score=args.min_score)
        found = score_file(args.predictions, data.truths, protocols, args, columns)
        results = [
            result_of(protocol, found.rows[protocol.name], found.counts[protocol.name], args.ci, groups)
            for protocol in protocols
        ]
        more = extra_results(args, protocols, found, data)
    results[0] |= more
    notes = notes_of(protocols, found, predictions, min_score=args.min_score)
    print("\n".join(report_lines(data, predictions, results, notes)))
    if args.json:
        shared = {"data": data.describe(), "predictions": predictions, "notes": notes}
        content: dict[str, Any] = {**results[0], **shared}
        if len(results) > 1:
            content["results"] = [{**result, **shared} for result in results]
        write_whole(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0


def extra_results(
    args: argparse.Namespace, protocols: Sequence[Protocol], found: ScoreResult, data: Data
) -> dict[str, Any]:
    """What --calibration and --alignment add to the first protocol's result."""
    from refseg.analysis.extras import alignment_report, no_target_report

    more: dict[str, Any] = {}
    if args.calibration:
        more["no_target"] = no_target_report(found.rows[protocols[0].name], protocols[0])
    if args.alignment:
        more["alignment"] = alignment_report(args.predictions, data.truths)
    return more


# What is scored -------------------------------------------------------------------------------------------------------


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
    from refseg.data_tools.leaks import parse
    from refseg.datasets.annotations import open_annotations
    from refseg.datasets.selection import in_splits

    if not argument.strip():
        raise UsageError("--data is empty: it takes SET:SPLIT, as in grefcoco:val or my.jsonl:test")
    targets, splits = parse(argument)
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
    from refseg.records import UNKNOWN

    names = {store.splits[code] for code in np.unique(store.split_of_expression[chosen])} | {UNKNOWN}
    return [problem for problem in store.problems if problem.split in names]


def describe_predictions(path: Path, *, min_score: float | None = None) -> dict[str, Any]:
    """The file, what it says it was made with, and its hash; a folder has neither. Of COCO results, how many entries
    are of a lower score, if one was asked for."""
    from refseg.evaluation.other_formats import SUFFIXES, entries_below, is_coco_results
    from refseg.evaluation.prediction_file import read_header
    from refseg.files import sha256_of

    is_file = os.path.isfile(path)  # unlike Path.is_file, False where it may not be looked at
    header = read_header(path) if is_file and path.name.endswith(SUFFIXES) else {}
    try:
        digest = sha256_of(path) if is_file else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    told: dict[str, Any] = {"file": str(path), "sha256": digest, "header": header}
    if min_score is not None and is_file and is_coco_results(path):
        told["below_min_score"] = entries_below(path, min_score)
    return told


def answers_of(
    path: str | Path, truths: TruthIndex, *, min_score: float | None = None, absent_is_nothing: bool = False
) -> Iterator[PredictionRow]:
    """The rows of a file of predictions, with "nothing here" for expressions that it leaves out, if asked for."""
    from refseg.evaluation.other_formats import open_predictions

    rows = open_predictions(path, min_score=min_score)
    return with_absent(rows, truths) if absent_is_nothing else rows


def score_file(
    path: str,
    truths: TruthIndex,
    protocols: Sequence[Protocol],
    args: argparse.Namespace,
    columns: dict[str, np.ndarray],
) -> ScoreResult:
    """`columns`: what the rows get besides, of all expressions."""
    from tqdm import tqdm

    rows = answers_of(path, truths, min_score=args.min_score, absent_is_nothing=args.absent_is_nothing)
    with tqdm(rows, total=len(truths), unit=" rows", desc="scoring", mininterval=0.5, dynamic_ncols=True) as shown:
        found = score_predictions(shown, truths, protocols, allow_partial=args.allow_partial)
    rows = {name: with_columns(rows, truths, columns) for name, rows in found.rows.items()}
    return replace(found, rows=rows)


# What is told ---------------------------------------------------------------------------------------------------------


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
        from refseg.evaluation.statistics import bootstrap

        found = bootstrap(terms, rows.image, num=resamples, seed=SEED, level=LEVEL)
        result["intervals"] = {name: list(ends) for name, ends in found.items()}
        result["bootstrap"] = {"level": LEVEL, "resamples": resamples, "seed": SEED, "of": "images"}
    if groups:
        from refseg.evaluation.breakdowns import breakdown

        result["by"] = {group: breakdown(rows, protocol, group, resamples=resamples) for group in groups}
    return result


def report_lines(data: Data, predictions: dict[str, Any], results: Sequence[dict], notes: Sequence[str]) -> list[str]:
    from refseg.analysis.extras import alignment_lines, no_target_lines

    told = data.describe()
    lines = [f"{predictions['file']} on {data.name}: {told['images']:,} images, {told['expressions']:,} expressions"]
    lines += [f"  {header_line(predictions['header'])}"] if predictions["header"] else []
    for result in results:
        lines += ["", f"{result['protocol']} ({result['counts']['scored']:,} expressions)"]
        lines += [f"  {line}" for line in _metric_lines(result)]
        for name, table in result.get("by", {}).items():
            lines += ["", *(f"  {line}" for line in _group_lines(name, table, list(result["metrics"])))]
    lines += ["", *no_target_lines(results[0]["no_target"])] if "no_target" in results[0] else []
    lines += ["", *alignment_lines(results[0]["alignment"])] if "alignment" in results[0] else []
    lines += [""] * bool(notes) + [f"note: {note}" for note in notes]
    return [printable(line) for line in lines]


def _metric_lines(result: dict[str, Any]) -> list[str]:
    intervals = result.get("intervals", {})
    rows = []
    for name, value in result["metrics"].items():
        ends = [f"[{end:.2f}" if i == 0 else f"{end:.2f}]" for i, end in enumerate(intervals.get(name, ()))]
        rows.append([name, f"{value:.2f}", ", ".join(ends)])
    return aligned(rows)


def _group_lines(name: str, table: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    if not table:
        return [f"by {name}: no expression has one"]
    heads = [name, "expressions", *metrics]
    rows = [[f"by {name}", *heads[1:], ""]]  # the last column would be to the left
    return aligned(rows + [[*(_cell(line.get(head)) for head in heads), ""] for line in table])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
