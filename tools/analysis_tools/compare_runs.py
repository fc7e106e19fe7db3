"""Compare training runs: a table of their scores, with mean and range over seeds, and their curves.

    python tools/analysis_tools/compare_runs.py --run LGFormer DIR DIR --run "one learnable query" DIR DIR \\
        [--scores val.json] [--metrics oIoU mIoU] [--by skill] [--curve refseg/oIoU] [--svg curves.svg]

Each DIR is a work directory with a file from `refseg score --json` (`--scores`). All files must have the same protocol
and data; `--by` needs a breakdown in them. Differences are to the first run, seed by seed if both have as many
directories. `--svg` draws `--curve`, a metric of validation during training, for every directory, or as the mean of
each run if there are too many directories to distinguish.
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
        raise UsageError("--run: expected a unique name and at least one directory for each run")
    return runs


def read_scores(folder: Path, name: str) -> dict:
    file = folder / name
    if not file.is_file():
        raise UsageError(f"No such file: {file}. Write it with `refseg score PREDICTIONS --data ... --json {file}`")
    return json.loads(file.read_text(encoding="utf-8"))


def check_comparable(scores: dict[str, list[dict]]) -> None:
    kinds = {(one["protocol"], json.dumps(one["data"], sort_keys=True)) for runs in scores.values() for one in runs}
    if len(kinds) > 1:
        names = "; ".join(sorted(f"{protocol} on {data}" for protocol, data in kinds))
        raise UsageError(f"The score files are of several protocols or data sets: {names}. Score all runs alike")


def check_metrics(scores: dict[str, list[dict]], metrics: list[str]) -> None:
    for metric in metrics:
        if not all(metric in one["metrics"] for runs in scores.values() for one in runs):
            known = ", ".join(next(iter(scores.values()))[0]["metrics"])
            raise UsageError(f"--metrics: {metric!r} is not in all score files. The first one has: {known}")


def spread(values: list[float]) -> str:
    """Return the mean, and the range of several values."""
    extent = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{extent}"


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
    """Return a table of means over seeds."""
    groups = next(iter(scores.values()))[0].get("by", {}).get(by)
    if not groups:
        raise UsageError(f"--by: the score files have no breakdown {by!r}. Write it with `refseg score ... --by {by}`")
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
            raise UsageError(f"--curve: {folder} has logged no {metric}")
        label = name if len(folders) == 1 else f"{name}, seed {number}"
        curves.append(Curve(label, found[0].steps, found[0].values))
    return curves


def mean_curve(name: str, curves: list[Curve]) -> Curve:
    """Return the mean of curves at the steps that all of them have."""
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
