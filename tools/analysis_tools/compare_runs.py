"""Puts training runs side by side: a table of their scores, mean and range over seeds, and their curves.

    python tools/analysis_tools/compare_runs.py --run LGFormer DIR DIR --run "one learnable query" DIR DIR \\
        [--scores val.json] [--metrics oIoU mIoU] [--by skill] [--curve refseg/oIoU] [--svg curves.svg]

Each DIR is a work directory. `--scores`: the file in it that `refseg score --json` wrote (with `--by` for the groups);
all must be of one protocol and of the same data. `--curve`: a metric of validation during training, drawn for every
directory, or, where these are more than can be told apart, as the mean of each run. Differences are to the first run,
seed by seed where each has as many directories.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from refseg.errors import UsageError, UserError
from refseg.report.plots import LINE_COLORS, Curve, plot_svg
from refseg.report.work_dir import scalar_rows, training_curves


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", action="append", required=True, metavar=("NAME", "DIR"))
    parser.add_argument("--scores", default="val.json", help="name of the score file inside each directory")
    parser.add_argument("--metrics", nargs="+", default=["oIoU", "mIoU"])
    parser.add_argument("--by", help="also a table per metric over the groups of this breakdown")
    parser.add_argument("--curve", default="refseg/oIoU", help="the metric that --svg draws")
    parser.add_argument("--svg", type=Path, help="write the curves to this file")
    return parser.parse_args()


def read_runs(given: list[list[str]]) -> dict[str, list[Path]]:
    runs = {name: [Path(folder) for folder in folders] for name, *folders in given}
    if len(runs) < len(given) or not all(runs.values()):
        raise UsageError("every --run is a name of its own and one directory or more")
    return runs


def read_scores(folder: Path, name: str) -> dict:
    file = folder / name
    if not file.is_file():
        raise UsageError(f"no {file}: write it with `refseg score PREDICTIONS --data ... --json {file}`")
    return json.loads(file.read_text(encoding="utf-8"))


def check_comparable(scores: dict[str, list[dict]]) -> None:
    kinds = {(one["protocol"], json.dumps(one["data"], sort_keys=True)) for runs in scores.values() for one in runs}
    if len(kinds) > 1:
        raise UsageError("the score files are of several protocols or data sets: " + "; ".join(k for k, _ in kinds))


def check_metrics(scores: dict[str, list[dict]], metrics: list[str]) -> None:
    for metric in metrics:
        if not all(metric in one["metrics"] for runs in scores.values() for one in runs):
            known = ", ".join(next(iter(scores.values()))[0]["metrics"])
            raise UsageError(f"no metric {metric!r} in all score files; there are {known}")


def spread(values: list[float]) -> str:
    """Mean, and the range where there are several."""
    told = f"{mean(values):.1f}"
    return told if len(values) == 1 else f"{told} ({min(values):.1f}-{max(values):.1f})"


def difference(values: list[float], first: list[float]) -> str:
    if len(values) != len(first):
        return f"{mean(values) - mean(first):+.1f}"
    return ", ".join(f"{value - other:+.1f}" for value, other in zip(values, first, strict=True))


def score_table(scores: dict[str, list[dict]], metrics: list[str]) -> list[str]:
    header = "| run | seeds | " + " | ".join(f"{metric} | difference" for metric in metrics) + " |"
    lines = [header, "|---" * (2 + 2 * len(metrics)) + "|"]
    first = next(iter(scores.values()))
    for name, runs in scores.items():
        cells = [name, str(len(runs))]
        for metric in metrics:
            values, others = ([one["metrics"][metric] for one in group] for group in (runs, first))
            cells += [spread(values), "" if runs is first else difference(values, others)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def group_table(scores: dict[str, list[dict]], by: str, metric: str) -> list[str]:
    """Means over seeds."""
    groups = next(iter(scores.values()))[0].get("by", {}).get(by)
    if not groups:
        raise UsageError(f"the score files have no breakdown {by!r}: `refseg score ... --by {by}`")
    names = [group[by] for group in groups]
    lines = [f"| {metric} | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for run, found in scores.items():
        tables = [{group[by]: group.get(metric) for group in one["by"][by]} for one in found]
        columns = [[table[name] for table in tables if table[name] is not None] for name in names]
        lines.append(f"| {run} | " + " | ".join(f"{mean(column):.1f}" if column else "-" for column in columns) + " |")
    return lines


def curves_of(name: str, folders: list[Path], metric: str) -> list[Curve]:
    curves = []
    for number, folder in enumerate(folders):
        found = [curve for curve in training_curves(scalar_rows(folder)).metrics if curve.name == metric]
        if not found:
            raise UsageError(f"{folder} has logged no {metric}")
        label = name if len(folders) == 1 else f"{name}, seed {number}"
        curves.append(Curve(label, found[0].steps, found[0].values))
    return curves


def mean_curve(name: str, curves: list[Curve]) -> Curve:
    """Of the steps that all have."""
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    values = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    label = name if len(curves) == 1 else f"{name}, mean of {len(curves)}"
    return Curve(label, tuple(steps), tuple(mean(one[step] for one in values) for step in steps))


def main() -> None:
    args = parse_args()
    try:
        runs = read_runs(args.run)
        scores = {name: [read_scores(folder, args.scores) for folder in folders] for name, folders in runs.items()}
        check_comparable(scores)
        check_metrics(scores, args.metrics)
        print(*score_table(scores, args.metrics), sep="\n")
        for metric in args.metrics if args.by else ():
            print("", *group_table(scores, args.by, metric), sep="\n")
        if args.svg:
            by_run = {name: curves_of(name, folders, args.curve) for name, folders in runs.items()}
            curves = [curve for found in by_run.values() for curve in found]
            if len(curves) > len(LINE_COLORS):
                curves = [mean_curve(name, found) for name, found in by_run.items()]
            args.svg.write_text(plot_svg(curves, title=f"{args.curve} in training"), encoding="utf-8")
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
