"""`refseg compare`: compare two prediction files on the same data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from refseg.cli.options import add_scoring_options, at_least, scoring_options
from refseg.cli.score import score_with_columns
from refseg.datasets.targets import data_root
from refseg.errors import UsageError
from refseg.evaluation.breakdowns import tag_columns
from refseg.evaluation.compare import BY, MOST_RANKINGS, Comparison, compare_rows
from refseg.evaluation.notes import notes_of
from refseg.evaluation.scorer import answers_of, describe_predictions, open_data
from refseg.evaluation.statistics import LEVEL
from refseg.report.compare_page import (
    COLUMNS,
    disagreement_cards,
    group_lines,
    metric_lines,
    render_comparison,
    tally_line,
)
from refseg.terminal import aligned, printable, write_whole

EXAMPLES = """
refseg compare a.jsonl b.jsonl --data refcoco:val --html compared.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("a", metavar="A", help="predictions, in any format of `refseg score`")
    add("b", metavar="B", help="other predictions; differences are B minus A")
    add_scoring_options(parser, protocols="NAME", by=",".join(BY))
    add("--names", metavar="A,B", help="their names in the output (default: the names of the files)")
    add("--html", metavar="FILE", help="also write a page with pictures of the largest disagreements")
    add("--cases", type=at_least(0), default=60, metavar="N", help="most pictures on the page (default: 60)")
    resamples = "image resamples for intervals and p-values (default: 10000; AUC and AURC: at most 500)"
    add("--resamples", type=at_least(1), default=10_000, metavar="N", help=resamples)
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of the resamples (default: 0)")


def main(args: argparse.Namespace) -> int:
    names, paths = names_of(args), (args.a, args.b)
    protocols, groups = scoring_options(args, *paths)
    if len(protocols) > 1:
        raise UsageError(f"refseg compare takes one protocol, not {len(protocols)}")
    protocol = protocols[0]
    with data_root(args.data_root):
        # Score both files
        data = open_data(args.data, allow_partial=args.allow_partial, drop_no_target=args.drop_no_target)
        columns = tag_columns(data.truths, groups)
        files, rows, notes = [], [], []
        for name, path in zip(names, paths, strict=True):
            described = describe_predictions(Path(path), min_score=args.min_score)
            scored = score_with_columns(path, data.truths, protocols, args, columns)
            files.append(described)
            rows.append(scored.rows[protocol.name])
            notes += [f"{name}: {note}" for note in notes_of(protocols, scored, described, min_score=args.min_score)]
        comparison = compare_rows(rows[0], rows[1], protocol, by=groups, num=args.resamples, seed=args.seed)
        # Print
        lines = [
            f"{names[0]} against {names[1]} on {data.name} by {protocol.name}: {len(comparison.rows_a):,} expressions",
            *_table_lines(metric_lines(comparison, names)),
            "",
            tally_line(comparison, names),
        ]
        for by, table in comparison.breakdowns.items():
            if table:
                lines += ["", *_table_lines(group_lines(comparison, by, names))]
        lines += ["", *(f"note: {note}" for note in notes)] if notes else []
        print("\n".join(map(printable, lines)))
        # Write
        if args.html:
            options: dict[str, Any] = dict(min_score=args.min_score, absent_is_nothing=args.absent_is_nothing)
            again = [answers_of(path, data.truths, **options) for path in paths]
            cards, problems = disagreement_cards(comparison, data.truths, again, names=names, limit=args.cases)
            facts = {"data": data.name, names[0]: files[0]["file"], names[1]: files[1]["file"]}
            page = render_comparison(comparison, names=names, facts=facts, cards=cards, problems=problems, notes=notes)
            write_whole(args.html, page)
    if args.json:
        content = to_json(comparison, names)
        content |= {"data": data.describe(), "predictions": files, "notes": notes}
        content["resampling"] = {"level": LEVEL, "resamples": args.resamples, "seed": args.seed, "of": "images"}
        content["resampling"]["of_rankings"] = min(args.resamples, MOST_RANKINGS)  # AUC and AURC
        write_whole(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0


def names_of(args: argparse.Namespace) -> tuple[str, str]:
    """Return a name for each file. Names are column titles, so they differ from each other and from other titles."""
    if args.names is None:
        stems = [Path(path).name.split(".")[0] for path in (args.a, args.b)]
        usable = stems[0] != stems[1] and all(stems) and not set(stems) & COLUMNS
        return (stems[0], stems[1]) if usable else ("A", "B")
    names = [name.strip() for name in args.names.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1] or set(names) & COLUMNS:
        raise UsageError(f"--names takes two different names, as in before,after, not {args.names!r}")
    return names[0], names[1]


def _table_lines(lines: list[dict[str, Any]]) -> list[str]:
    heads = list(lines[0]) if lines else []
    return [f"  {line}" for line in aligned([heads, *([str(line[head]) for head in heads] for line in lines)])]


def to_json(comparison: Comparison, names: tuple[str, str]) -> dict[str, Any]:
    """Return the content of --json, with the 100 largest disagreements."""
    order = comparison.by_disagreement()[:100]
    ids = comparison.rows_a.expression_id
    return {
        "protocol": comparison.protocol.name,
        "details": comparison.protocol.describe(),
        "names": list(names),
        "expressions": len(comparison.rows_a),
        "metrics": {name: result._asdict() for name, result in comparison.metrics.items()},
        "better": comparison.tally(),
        "by": comparison.breakdowns,
        "disagreements": [
            {"expression_id": str(ids[i]), "a": float(comparison.worth_a[i]), "b": float(comparison.worth_b[i])}
            for i in order
        ],
    }
