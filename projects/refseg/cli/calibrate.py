"""`refseg calibrate`: choose thresholds on validation predictions, and write them into a model's config."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refseg.analysis.calibrated_config import find_target, write_thresholds
from refseg.analysis.thresholds import Choice, Goal, InstanceUnions, Settings, choose_thresholds
from refseg.cli.options import add_matching_options, finite
from refseg.datasets.targets import data_root
from refseg.errors import DataError, UsageError
from refseg.evaluation.notes import header_line, notes_of
from refseg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import Data, answers_of, describe_predictions, open_data, score_predictions
from refseg.terminal import aligned, open_output, printable, write_whole

EXAMPLES = """
refseg test work_dirs/quickstart --split val --predictions val.jsonl
refseg calibrate val.jsonl --data data/refshapes_mini/refshapes.jsonl:val --apply work_dirs/quickstart
refseg calibrate val.jsonl --data grefcoco:val --protocol gres --min-t-acc 97 --plot curve.png
"""
ROWS = 10  # rows of a printed curve, besides the file's own threshold and the chosen one
SHOWN = ("N-acc", "T-acc", "gIoU", "cIoU")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("predictions", help="prediction file of `refseg test --predictions`, on val")
    add("--data", required=True, metavar="SET:SPLIT", help="data set and its splits, as for `refseg score`")
    names = ", ".join(_protocols_with_giou())
    add("--protocol", default="refseg", metavar="NAME", help=f"one of {names} (default: refseg)")
    goal = "metric to maximize (default: N-acc with --min-t-acc, otherwise gIoU)"
    add("--goal", choices=["gIoU", "N-acc"], help=goal)
    add("--min-t-acc", type=percentage, metavar="X", help="choose only thresholds whose T-acc is at least X percent")
    add("--json", metavar="FILE", help="also write the choice and the curves to this file")
    add("--plot", metavar="FILE", help="also draw the curves to this PNG file")
    apply = "write the thresholds into the config of this work directory, or into a new config beside this config file"
    add("--apply", metavar="MODEL", help=apply)
    add_matching_options(parser)


def main(args: argparse.Namespace) -> int:
    # Check everything that needs no predictions first.
    goal = goal_of(args)
    if args.protocol not in _protocols_with_giou():
        get_protocol(args.protocol)  # an unknown name is another error
        raise UsageError(f"{args.protocol} has no gIoU. Choose by one of {', '.join(_protocols_with_giou())}")
    protocol = get_protocol(args.protocol)
    if args.plot and not args.plot.endswith(".png"):
        raise UsageError(f"--plot {args.plot}: the name must end in .png")

    with data_root(args.data_root):
        data = open_data(args.data, allow_partial=args.allow_partial, drop_no_target=args.drop_no_target)
        predictions = describe_predictions(Path(args.predictions))
        if os.path.isfile(args.predictions) and not os.path.getsize(args.predictions):
            raise DataError(f"{args.predictions} is empty. `refseg test MODEL --predictions FILE` writes predictions")
        header = predictions["header"]
        target = find_target(args.apply, args.predictions, header) if args.apply else None

        # Measure the file in one pass, and choose.
        unions = InstanceUnions(data.truths, protocol.view) if header.get("merged") == "instances" else None
        try:
            answers = answers_of(args.predictions, data.truths, absent_is_nothing=args.absent_is_nothing)
            with tqdm(answers, total=len(data.truths), unit=" rows", desc="measuring", mininterval=0.5) as bar:
                watched = bar if unions is None else unions.watch(bar)
                scored = score_predictions(watched, data.truths, [protocol], allow_partial=args.allow_partial)
            rows = scored.rows[protocol.name]
            table = None if unions is None else unions.table(rows)
            choice = choose_thresholds(rows, table, protocol, goal, Settings.of_header(header))
        except DataError as error:
            if args.predictions in str(error):
                raise
            made_with = f"\n  {args.predictions} was made with {header_line(header)}" if header else ""
            raise DataError(f"{args.predictions} on {data.name}: {error}{made_with}") from None

    notes = choice.notes + notes_of([protocol], scored, predictions, calibrating=True)
    lines = report_lines(data, predictions, rows, choice, protocol.name)
    lines += ["", *(f"note: {note}" for note in notes)] if notes else []
    print("\n".join(map(printable, lines)))
    splits = data.splits or data.truths.store.splits
    if any(split.startswith("test") for split in splits):
        print(f"warning: the thresholds were chosen on {data.name}. Test numbers need thresholds chosen on val",
              file=sys.stderr)  # fmt: skip
    if args.json:
        write_whole(args.json, json.dumps(result_of(data, predictions, choice, notes), indent=2) + "\n")
    if args.plot:
        with open_output(args.plot) as file:
            file.write(plot(choice, f"{data.name}, {protocol.name}"))
    if target is not None:
        keys = write_thresholds(target, choice.chosen.known())
        print(f"wrote {target.out}: {', '.join(keys) or 'no change'}")
    return 0


def goal_of(args: argparse.Namespace) -> Goal:
    if args.goal == "N-acc" and args.min_t_acc is None:
        raise UsageError("--goal N-acc needs --min-t-acc X: without it, rejecting every phrase would be best")
    return Goal(args.goal or ("gIoU" if args.min_t_acc is None else "N-acc"), args.min_t_acc)


def _protocols_with_giou() -> list[str]:
    """Return the names of the protocols that have gIoU, N-acc and T-acc."""
    return [name for name, protocol in PROTOCOLS.items() if "gIoU" in protocol.terms(Rows.of(()))]


def percentage(text: str) -> float:
    number = finite(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage in [0, 100]")
    return number


def report_lines(data: Data, predictions: dict[str, Any], rows: Rows, choice: Choice, protocol_name: str) -> list[str]:
    """Return the lines to print: a table per threshold, the scores before and after, and a command for the test set."""
    size = data.describe()
    lines = [
        f"{predictions['file']} on {data.name}: {size['images']:,} images, {len(rows):,} expressions, "
        f"{int((~rows.has_target).sum()):,} of which refer to nothing"
    ]
    lines += [f"  {header_line(predictions['header'])}"] if predictions["header"] else []

    # A table per threshold, with values between which the metrics change about equally
    own, chosen = choice.own.known(), choice.chosen.known()
    for name, curve in choice.curves.items():
        marks = {own[name]: "the file's", chosen[name]: f"chosen: {choice.goal}"}
        if own[name] == chosen[name]:
            marks = {own[name]: f"the file's, and chosen: {choice.goal}"}
        heads = list(curve[0])[1:]
        values = np.array([[line[head] for head in heads] for line in curve])
        changed = np.cumsum(np.abs(np.diff(values, axis=0, prepend=values[:1])).sum(1))  # since the first line
        places = set(np.searchsorted(changed, np.linspace(0, changed[-1], ROWS)).tolist())
        shown = [line for i, line in enumerate(curve) if i in places or line["threshold"] in marks]
        table = [[name, *heads, ""]]
        for line in shown:
            mark = f"<- {marks[line['threshold']]}" if line["threshold"] in marks else ""
            table.append([repr(line["threshold"]), *(f"{line[head]:.2f}" for head in heads), mark])
        lines += ["", *aligned(table)]

    # Scores before and after
    table = [["", *(name for name in SHOWN if name in choice.before[1]), ""]]
    for when, settings, (protocol, scores) in (
        ("before", own, choice.before),
        ("after", chosen, choice.after),
    ):
        values = [f"{scores[name]:.2f}" for name in SHOWN if name in scores]
        table.append([f"{when}: {_text(settings)}", *values, protocol.name])
    lines += ["", *aligned(table)]
    if "AUC" in choice.before[1]:
        lines.append(f"AUC {choice.before[1]['AUC']:.2f}, whatever the threshold is")
    lines += ["", "Report test numbers with thresholds that were chosen on val."]
    if choice.chosen.instance_threshold is None:
        lines[-1] += " On the test set's predictions:"
        option = f"--no-target-threshold {choice.chosen.no_target_threshold!r}"
        lines.append(f"  refseg score FILE --data SET:SPLIT --protocol {protocol_name} {option}")
    return lines


def _text(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in settings.items())


def result_of(data: Data, predictions: dict[str, Any], choice: Choice, notes: Sequence[str]) -> dict[str, Any]:
    """Return the choice as JSON values."""

    def scored(settings: Settings, result: tuple[Protocol, dict[str, float]]) -> dict[str, Any]:
        protocol, metrics = result
        return {"thresholds": settings.known(), "protocol": protocol.describe(), "metrics": metrics}

    return {
        "goal": {"metric": choice.goal.metric, "min_t_acc": choice.goal.min_t_acc},
        "chosen": choice.chosen.known(),
        "before": scored(choice.own, choice.before),
        "after": scored(choice.chosen, choice.after),
        "curves": choice.curves,
        "data": data.describe(),
        "predictions": predictions,
        "notes": list(notes),
    }


def plot(choice: Choice, title: str) -> bytes:
    """Draw the metrics over each threshold as a PNG, with the chosen value marked."""
    from refseg.report.plots import Curve, plot_png

    plots = []
    for name, lines in choice.curves.items():
        steps = tuple(line["threshold"] for line in lines)
        heads = list(lines[0])[1:]
        curves = [Curve(head, steps, tuple(line[head] for line in lines)) for head in heads]
        plots.append((curves, name, choice.chosen.known()[name]))
    return plot_png(plots, title=title)
