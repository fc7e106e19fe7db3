"""`refseg report`: write one page about a run."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from refseg.cli.options import add_scoring_options, at_least, scoring_options
from refseg.datasets.targets import data_root
from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import read_header
from refseg.evaluation.scorer import open_data
from refseg.report.report import Report, probes_section, render_report
from refseg.report.report_data import BY, PER_GROUP, RESAMPLES, Settings, score_run
from refseg.report.work_dir import WorkDir, read_work_dir
from refseg.terminal import write_whole

EXAMPLES = """
refseg report work_dirs/quickstart --predictions answers.jsonl --data data/refshapes_mini:test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("work_dir", metavar="WORK_DIR", help="work directory of a training: its log has curves, config and environment")
    add("--predictions", metavar="FILE", help="predictions of the model, in any format of `refseg score`")
    add("--probes", metavar="FILE", help="output of `refseg probe --json`")
    add("--out", metavar="FILE", help="page to write (default: WORK_DIR/report.html)")
    add("--cases", type=at_least(0), default=PER_GROUP, metavar="N", help=f"pictures per group (default: {PER_GROUP})")
    resamples = f"image resamples for intervals (default: {RESAMPLES})"
    add("--resamples", type=at_least(1), default=RESAMPLES, metavar="N", help=resamples)
    add_scoring_options(parser, protocols="NAME[,NAME]", by=",".join(BY), data_required=False)


def main(args: argparse.Namespace) -> int:
    run = read_work_dir(args.work_dir)
    if not args.predictions:
        for option, value in (("--data", args.data), ("--json", args.json)):
            if value:
                raise UsageError(f"{option} needs predictions. Pass their file with --predictions")
    probes = read_probes(args.probes) if args.probes else None
    if args.predictions:
        report = score(args)
    else:
        report = Report(missing=how_to_score(run))
        if not run.curves.losses and not run.curves.metrics and not run.config_text:
            raise UsageError(
                f"nothing to report in {run.path}: it has no log (*/vis_data/scalars.json) and no config. Pass another "
                "work directory, or --predictions"
            )
        print(report.missing)
    report = replace(
        report,
        title=run.config or run.path.resolve().name,
        summary={**report.summary, "work directory": str(run.path)},
        curves=run.curves,
        environment=run.environment,
        config_text=run.config_text,
        probes=probes,
    )
    out = Path(args.out or run.path / "report.html")
    write_whole(out, render_report(report))
    print(f"report: {out.resolve()} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0


def score(args: argparse.Namespace) -> Report:
    """Score the predictions, and write the numbers if --json is given."""
    if not args.data:
        # The header of a prediction file may name its data.
        is_file = args.predictions.endswith((".jsonl", ".jsonl.gz"))
        data = read_header(args.predictions).get("data") if is_file else None
        annotations = data.get("annotations") if isinstance(data, dict) else None
        hint = ""
        if isinstance(data, dict) and isinstance(annotations, dict):
            name = annotations.get("file") or annotations.get("refs")
            hint = f". The file was made with {name}, split {data.get('split')}"
        raise UsageError(f"--predictions needs --data SET:SPLIT{hint}")
    protocols, groups = scoring_options(args, args.predictions)
    settings = Settings(
        protocols=protocols,
        groups=groups,
        per_group=args.cases,
        resamples=args.resamples,
        min_score=args.min_score,
        allow_partial=args.allow_partial,
        absent_is_nothing=args.absent_is_nothing,
    )
    with data_root(args.data_root):
        data = open_data(args.data, allow_partial=args.allow_partial, drop_no_target=args.drop_no_target)
        report = score_run(args.predictions, data, settings)
    if args.json:
        numbers = ("summary", "results", "no_target", "hits", "instances", "notes")
        content = {name: getattr(report, name) for name in numbers}
        write_whole(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return report


def how_to_score(run: WorkDir) -> str:
    """Return the commands that make predictions with the config and checkpoint of a work directory."""
    config = next(iter(run.path.glob("*.py")), "CONFIG")
    checkpoint = run.checkpoints[0] if run.checkpoints else "CHECKPOINT"
    predictions = run.path / "predictions.jsonl"
    return (
        "Scores, calibration and pictures need predictions. Make them, then pass them with their data:\n"
        f"  refseg test {config} {checkpoint} --predictions {predictions}\n"
        f"  refseg report {run.path} --predictions {predictions} --data SET:SPLIT"
    )


def read_probes(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such file of probes: {file}. `refseg probe ... --json {file}` writes it") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error})") from None
    try:
        probes_section(content)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{file} is not a file of `refseg probe --json`, or it is damaged") from None
    return content
