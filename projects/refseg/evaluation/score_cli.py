"""`refseg score`: a file of predictions, of any model, scored by named protocols."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refseg.datasets.commands.findings import aligned
from refseg.datasets.commands.output import printable, write_whole
from refseg.datasets.commands.targets import Target, data_root
from refseg.errors import DataError, UsageError
from refseg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import Counts, ScoreResult, TruthIndex, measured_on, score_predictions

LEVEL, SEED = 95.0, 0  # of intervals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "predictions",
        help="prediction file (.jsonl, .jsonl.gz), folder of PNGs named by expression, COCO results (.json)",
    )
    add(
        "--data",
        required=True,
        metavar="SET:SPLIT",
        help="a name as `refseg data layout` lists them, a JSONL file or a folder, and its splits: grefcoco:testA, "
        "refcoco:val,testA, my.jsonl:test; without splits, all of it",
    )
    add("--protocol", default="refseg", metavar="NAME[,NAME]", help=f"{', '.join(PROTOCOLS)} (default: refseg)")
    add("--json", metavar="FILE", help="write everything to this file too")
    add("--by", metavar="WHAT[,WHAT]", help="break down by length, targets, size, category, skill")
    add(
        "--ci", nargs="?", type=_positive, const=1000, metavar="N", help="intervals of 95 %% from N resamples of images"
    )
    add(
        "--no-target-rule", choices=["head", "area", "none"], help="another rule for 'nothing here' than the protocol's"
    )
    add(
        "--no-target-threshold",
        type=_share,
        metavar="P",
        help="of the rule head: rejected above it (0.5)",
    )
    add("--min-area", type=_positive, metavar="PIXELS", help="of the rule area: rejected below so many pixels (50)")
    add("--min-score", type=float, default=0.0, help="of COCO results: leave out masks of a lower score (0: none)")
    add(
        "--allow-partial",
        action="store_true",
        help="count missing, duplicate, extra and mis-sized masks, score the rest",
    )
    add("--calibration", action="store_true", help="confusion, calibration and threshold curve of 'nothing here'")
    add("--alignment", action="store_true", help="how well instances' weights find their words (RefShapes)")
    add("--data-root", metavar="DIR", help="what `data/...` stands for (default: $REFSEG_DATA)")


def main(args: argparse.Namespace) -> int:
    protocols = chosen_protocols(args)
    groups = _names(args.by) if args.by else []
    if groups:
        from refseg.evaluation.breakdowns import get_breakdown

        for group in groups:
            get_breakdown(group)  # a wrong name is told before the work
    with data_root(args.data_root):
        data = open_data(args.data, allow_partial=args.allow_partial)
        predictions = describe_predictions(Path(args.predictions))
        found = score_file(args.predictions, data.truths, protocols, args)
        results = [
            result_of(protocol, found.rows[protocol.name], found.counts[protocol.name], args.ci, groups)
            for protocol in protocols
        ]
        more = extra_results(args, protocols, found, data)
    results[0] |= more
    notes = notes_of(protocols, found, predictions)
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
    from refseg.evaluation.extras import alignment_report, no_target_report

    more: dict[str, Any] = {}
    if args.calibration:
        more["no_target"] = no_target_report(found.rows[protocols[0].name], protocols[0])
    if args.alignment:
        more["alignment"] = alignment_report(args.predictions, data.truths)
    return more


# What is scored -------------------------------------------------------------------------------------------------------


def chosen_protocols(args: argparse.Namespace) -> list[Protocol]:
    """As named, with the rule for "nothing here" that the options ask for."""
    protocols = [get_protocol(name) for name in _names(args.protocol)]
    asked = {
        "rule": args.no_target_rule,
        "threshold": args.no_target_threshold,
        "min_area": args.min_area,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    if not changes:
        return protocols
    for protocol in protocols:
        if protocol.no_target.rule == "none":
            raise UsageError(
                f"protocol {protocol.name} has no rule for 'nothing here' that --no-target-... could change"
            )
        rule = changes.get("rule", protocol.no_target.rule)
        for option, name, needed in (
            ("--no-target-threshold", "threshold", "head"),
            ("--min-area", "min_area", "area"),
        ):
            if name in changes and rule != needed:
                raise UsageError(f"{option} needs --no-target-rule {needed}; {protocol.name}'s is {rule}")
    return [protocol.with_no_target(**changes) for protocol in protocols]


@dataclass(frozen=True)
class Data:
    """The ground truth, and what a result says of it."""

    target: Target
    splits: list[str] | None
    truths: TruthIndex
    unreadable: int

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
            "unreadable_annotations": self.unreadable,
        }


def open_data(argument: str, *, allow_partial: bool = False) -> Data:
    """SET:SPLIT,SPLIT. Every sentence of the splits counts."""
    from refseg.datasets.annotations import open_annotations
    from refseg.datasets.commands.leaks import parse
    from refseg.datasets.selection import in_splits

    targets, splits = parse(argument)
    if len(targets) > 1:
        names = ", ".join(str(target.main_file) for target in targets)
        raise UsageError(f"--data {argument} has several sets of annotations ({names}): name a file or its folder")
    target = targets[0]
    store = open_annotations(**target.annotations)
    chosen = in_splits(store, splits)
    if not chosen.any():
        raise DataError(f"{argument} has no expressions")
    unreadable = _unreadable(store, chosen)
    if unreadable and not allow_partial:
        raise DataError(
            f"{len(unreadable)} annotations of {argument} cannot be used, the first: {unreadable[0]}. `refseg data "
            "check` lists all; --allow-partial scores without them"
        )
    return Data(target, splits, TruthIndex(store, chosen, target.images), len(unreadable))


def _unreadable(store: Any, chosen: np.ndarray) -> list[Any]:
    from refseg.records import UNKNOWN

    names = {store.splits[code] for code in np.unique(store.split_of_expression[chosen])} | {UNKNOWN}
    return [problem for problem in store.problems if problem.split in names]


def describe_predictions(path: Path) -> dict[str, Any]:
    """The file, what it says it was made with, and its hash; a folder has neither."""
    from refseg.evaluation.foreign import SUFFIXES
    from refseg.evaluation.prediction_file import read_header
    from refseg.files import sha256_of

    is_file = path.is_file()
    header = read_header(path) if is_file and path.name.endswith(SUFFIXES) else {}
    return {"file": str(path), "sha256": sha256_of(path) if is_file else None, "header": header}


def score_file(path: str, truths: TruthIndex, protocols: Sequence[Protocol], args: argparse.Namespace) -> ScoreResult:
    from tqdm import tqdm

    from refseg.evaluation.foreign import open_predictions

    rows = open_predictions(path, min_score=args.min_score)
    with tqdm(rows, total=len(truths), unit=" rows", desc="scoring", mininterval=0.5, dynamic_ncols=True) as shown:
        return score_predictions(shown, truths, protocols, allow_partial=args.allow_partial)


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

        result["by"] = {group: breakdown(rows, protocol, group) for group in groups}
    return result


def notes_of(protocols: Sequence[Protocol], found: ScoreResult, predictions: dict[str, Any]) -> list[str]:
    """What a reader must know to use the numbers."""
    notes = []
    for protocol in protocols:
        counts, rows = found.counts[protocol.name], found.rows[protocol.name]
        if counts.scored < counts.expected:
            notes.append(
                f"{protocol.name}: PARTIAL: scores are of {counts.scored:,} of {counts.expected:,} expressions "
                f"({counts.missing:,} missing, {counts.mis_sized:,} mis-sized)"
            )
        if counts.resized:
            notes.append(
                f"{protocol.name}: {counts.resized:,} masks of the original size were resized to the protocol's grid, "
                "nearest: close to the published evaluator, which resizes logits, but not bit-equal to it"
            )
        if protocol.no_target.rule == "head" and len(rows) and np.isnan(rows.no_target_prob).all():
            notes.append(
                f"{protocol.name}: the file has no no_target_prob, so no expression is rejected; --no-target-rule area "
                "rejects by the mask"
            )
    prescribed = [protocol.name for protocol in protocols if protocol.view != measured_on(protocol.view)]
    if prescribed:
        notes.append(
            f"{', '.join(prescribed)}: interpolation and threshold, which the protocol prescribes for logits, are what "
            "the file's writer chose"
        )
    counts = found.counts[protocols[0].name]
    if counts.duplicate or counts.extra:
        notes.append(
            f"{counts.duplicate:,} duplicate predictions (the first counts) and {counts.extra:,} of other expressions "
            "were left out"
        )
    if not predictions["header"]:
        notes.append(
            "the predictions do not say what made them: checkpoint, training data and leak filter are not known"
        )
    return notes


def report_lines(data: Data, predictions: dict[str, Any], results: Sequence[dict], notes: Sequence[str]) -> list[str]:
    from refseg.evaluation.extras import alignment_lines, no_target_lines

    told = data.describe()
    lines = [f"{predictions['file']} on {data.name}: {told['images']:,} images, {told['expressions']:,} expressions"]
    lines += [f"  {name}: {json.dumps(value)}" for name, value in predictions["header"].items()]
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


def _names(argument: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in argument.split(",")))
    if not all(names):
        raise UsageError(f"{argument!r} is no list of names")
    return names


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be in [0, 1]")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
