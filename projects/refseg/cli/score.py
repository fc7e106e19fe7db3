"""`refseg score`: a file of predictions, of any model, scored by named protocols."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
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
from refseg.datasets.targets import data_root
from refseg.evaluation.breakdowns import tag_columns, with_columns
from refseg.evaluation.notes import header_line, notes_of
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.scorer import (
    Data,
    ScoreResult,
    TruthIndex,
    answers_of,
    describe_predictions,
    open_data,
    result_of,
    score_predictions,
)
from refseg.terminal import aligned, printable, write_whole

EXAMPLES = """
refseg score answers.jsonl --data refcoco:val --protocol lavt,refseg
"""


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
    from refseg.analysis.calibration import no_target_report
    from refseg.evaluation.alignment import alignment_report

    more: dict[str, Any] = {}
    if args.calibration:
        more["no_target"] = no_target_report(found.rows[protocols[0].name], protocols[0])
    if args.alignment:
        more["alignment"] = alignment_report(args.predictions, data.truths)
    return more


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


def report_lines(data: Data, predictions: dict[str, Any], results: Sequence[dict], notes: Sequence[str]) -> list[str]:
    from refseg.analysis.calibration import no_target_lines
    from refseg.evaluation.alignment import alignment_lines

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
