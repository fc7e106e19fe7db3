"""`refseg score`: score the predictions of any model by named protocols."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refseg.analysis.calibration import no_target_lines, no_target_report
from refseg.cli import suite
from refseg.cli.options import add_scoring_options, at_least, scoring_options
from refseg.datasets.targets import data_root
from refseg.errors import UsageError
from refseg.evaluation.alignment import alignment_lines, alignment_report
from refseg.evaluation.breakdowns import tag_columns, with_columns
from refseg.evaluation.notes import header_line, notes_of
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.scorer import (
    Data,
    ScoreResult,
    TruthIndex,
    best_of,
    describe_predictions,
    open_data,
    result_of,
    score_file,
)
from refseg.evaluation.suites import suites
from refseg.processes import usable_cores
from refseg.terminal import aligned, printable, write_whole

MAX_WORKERS = 8  # each of them has the ids of all expressions
EXAMPLES = """
refseg score answers.jsonl --data refcoco:val --protocol lavt,refseg
refseg score work_dirs/instalign_swinb --suite gres --table gres.md
refseg score masks/ --data my.jsonl:test --by length,size --ci
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("predictions", help="prediction file, folder of PNGs, or COCO results (see below); a model for --suite")
    add_scoring_options(parser, protocols="NAME[,NAME]", by="", data_required=False)
    ci = "95 %% confidence intervals from N resamples of images (1000 without N)"
    add("--ci", nargs="?", type=at_least(1), const=1000, metavar="N", help=ci)
    add("--calibration", action="store_true", help="also report confusion and calibration of 'nothing here'")
    add("--alignment", action="store_true", help="also report how well word weights match instances (RefShapes only)")
    more = "annotations of the same phrases by others (protocol saco): the best one counts for each phrase"
    text = (
        f"score a model on all sets of a table ({', '.join(suites())}), beside published rows. Instead of the model, "
    )
    add("--suite", metavar="NAME", help=text + "a folder with files SET_SPLIT.jsonl may be given")
    add("--table", metavar="FILE", help="with --suite: also write the table (.md, .tex, .txt, .json)")
    add("--out", metavar="DIR", help="with --suite: folder of predictions (default: work_dirs/suites/MODEL)")
    add("--annotators", nargs="+", default=[], metavar="SET:SPLIT", help=more)


def main(args: argparse.Namespace) -> int:
    if args.suite:
        return suite.main(args)
    if args.table or args.out:
        option = "--table" if args.table else "--out"
        raise UsageError(f"{option} goes with --suite. --json writes the results of one set")
    if args.data is None:
        raise UsageError("--data is missing. Pass SET:SPLIT, for example grefcoco:val or my.jsonl:test")
    protocols, groups = scoring_options(args, args.predictions)
    with data_root(args.data_root):
        data = open_data(args.data, allow_partial=args.allow_partial, drop_no_target=args.drop_no_target)
        columns = tag_columns(data.truths, groups)
        predictions = describe_predictions(Path(args.predictions), min_score=args.min_score)
        scored = score_with_columns(args.predictions, data.truths, protocols, args, columns)
        if args.annotators:
            scored = with_annotators(scored, protocols, args)
        results = [
            result_of(protocol, scored.rows[protocol.name], scored.counts[protocol.name], args.ci, groups)
            for protocol in protocols
        ]
        if args.calibration:
            results[0]["no_target"] = no_target_report(scored.rows[protocols[0].name], protocols[0])
        if args.alignment:
            results[0]["alignment"] = alignment_report(args.predictions, data.truths)
    notes = notes_of(protocols, scored, predictions, min_score=args.min_score)
    print("\n".join(map(printable, report_lines(data, predictions, results, notes))))
    if args.json:
        shared = {"data": data.describe(), "predictions": predictions, "notes": notes}
        content: dict[str, Any] = {**results[0], **shared}
        if len(results) > 1:
            content["results"] = [{**result, **shared} for result in results]
        write_whole(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0


def with_annotators(scored: ScoreResult, protocols: Sequence[Protocol], args: argparse.Namespace) -> ScoreResult:
    """Replace the rows by those of the annotator who agrees best, expression by expression."""
    wrong = [protocol.name for protocol in protocols if not protocol.lists_objects]
    if wrong:
        raise UsageError(f"--annotators: protocol {wrong[0]} does not score instances. Use --protocol saco")
    others = []
    for name in args.annotators:
        truths = open_data(name, allow_partial=args.allow_partial).truths
        others.append(score_with_columns(args.predictions, truths, protocols, args, {}))
    rows = {
        protocol.name: best_of([one.rows[protocol.name] for one in (scored, *others)], protocol)
        for protocol in protocols
    }
    counts = {name: replace(count, scored=len(rows[name])) for name, count in scored.counts.items()}
    return replace(scored, rows=rows, counts=counts)


def score_with_columns(
    path: str,
    truths: TruthIndex,
    protocols: Sequence[Protocol],
    args: argparse.Namespace,
    columns: dict[str, np.ndarray],
) -> ScoreResult:
    """Score one file of predictions.

    Args:
        path: prediction file, folder of PNGs, or COCO results.
        truths: annotations.
        protocols: protocols to score by.
        args: values of `add_scoring_options`.
        columns: more columns for the rows, each with a value per expression.
    """
    with tqdm(total=len(truths), unit=" rows", desc="scoring", mininterval=0.5, dynamic_ncols=True) as bar:
        scored = score_file(
            path,
            truths,
            protocols,
            min_score=args.min_score,
            absent_is_nothing=args.absent_is_nothing,
            allow_partial=args.allow_partial,
            workers=min(usable_cores(), MAX_WORKERS),
            progress=bar.update,
        )
    return replace(scored, rows={name: with_columns(rows, truths, columns) for name, rows in scored.rows.items()})


def report_lines(data: Data, predictions: dict[str, Any], results: Sequence[dict], notes: Sequence[str]) -> list[str]:
    """Return the lines to print: a table of metrics and a table per breakdown for each result, and the notes."""
    size = data.describe()
    lines = [f"{predictions['file']} on {data.name}: {size['images']:,} images, {size['expressions']:,} expressions"]
    lines += [f"  {header_line(predictions['header'])}"] if predictions["header"] else []
    for result in results:
        lines += ["", f"{result['protocol']} ({result['counts']['scored']:,} expressions)"]
        # One row per metric: name, value, interval
        rows = []
        for name, value in result["metrics"].items():
            low, high = result.get("intervals", {}).get(name, (None, None))
            rows.append([name, f"{value:.2f}", "" if low is None else f"[{low:.2f}, {high:.2f}]"])
        lines += [f"  {line}" for line in aligned(rows)]
        # One row per group: label, expressions, metrics. `aligned` puts the last column to the left.
        for name, groups in result.get("by", {}).items():
            heads = ["expressions", *result["metrics"]]
            table = [[f"by {name}", *heads, ""]]
            mean = result["mean_of_groups"].get(name)
            rest = [{name: f"mean of {len(groups)} groups", **mean}] if mean else []
            table += [[str(group[name]), *(_cell(group.get(head)) for head in heads), ""] for group in [*groups, *rest]]
            table = aligned(table) if groups else [f"by {name}: no expression has this property"]
            lines += ["", *(f"  {line}" for line in table)]
    lines += ["", *no_target_lines(results[0]["no_target"])] if "no_target" in results[0] else []
    lines += ["", *alignment_lines(results[0]["alignment"])] if "alignment" in results[0] else []
    return [*lines, "", *(f"note: {note}" for note in notes)] if notes else lines


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
