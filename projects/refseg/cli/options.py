"""Options that `refseg score`, `refseg compare` and `refseg report` share, and their checks."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from typing import get_args

from refseg.errors import UsageError
from refseg.evaluation.breakdowns import BREAKDOWNS, TAG, get_breakdown
from refseg.evaluation.other_formats import is_coco_results
from refseg.evaluation.protocols import PROTOCOLS, READ_BY, Protocol, get_protocol
from refseg.records import NoTargetRule

FORMATS = """
predictions are read from
  a prediction file (.jsonl, .jsonl.gz), as `refseg test --predictions` writes it; docs/protocols.md has its fields
  a folder of PNGs, one per expression, named by its id: what a file name cannot hold is percent-encoded (a/b is
    a%2Fb.png); grey, black and white or RGB; 0 is background, everything else is mask
  COCO results (.json), a list of objects with an id (expression_id, or else image_id, or else id: the first of them
    that the first entry has), segmentation (an RLE), score and bbox. Entries of one id are one answer: their masks are
    merged, and each is a box, its bbox or the one around its mask. "Nothing here" is an entry with an empty mask,
    or no entry and --absent-is-nothing
"""


def add_shared_arguments(
    parser: argparse.ArgumentParser, *, protocols: str, by: str, data_required: bool = True
) -> None:
    """`protocols`: the metavar of --protocol. `by`: the default breakdowns."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = FORMATS
    add = parser.add_argument
    add(
        "--data",
        required=data_required,
        metavar="SET:SPLIT",
        help="a name as `refseg data layout` lists them, a JSONL file or a folder, and its splits: grefcoco:testA, "
        "refcoco:val,testA, my.jsonl:test; without splits, all of it",
    )
    add("--protocol", default="refseg", metavar=protocols, help=f"{', '.join(PROTOCOLS)} (default: refseg)")
    ways = ", ".join([*BREAKDOWNS, f"{TAG}NAME"])
    add("--by", default=by, metavar="WHAT[,WHAT]", help=f"break down by {ways} (default: {by or 'not'})")
    add("--json", metavar="FILE", help="write everything to this file too")
    add("--no-target-rule", choices=get_args(NoTargetRule), help="another rule for 'nothing here' than the protocol's")
    add(
        "--no-target-threshold",
        type=share,
        metavar="P",
        help="of the rules head and head-or-empty: rejected above it (0.5)",
    )
    add("--min-area", type=at_least(1), metavar="PIXELS", help="of the rule area: rejected below so many pixels (50)")
    add("--min-score", type=finite, metavar="S", help="of COCO results: leave out masks of a lower score")
    add(
        "--absent-is-nothing",
        action="store_true",
        help="count an expression without a prediction as answered with 'nothing here'",
    )
    add("--drop-no-target", action="store_true", help="leave out expressions that refer to nothing")
    add(
        "--allow-partial",
        action="store_true",
        help="count missing, duplicate, extra and mis-sized predictions, score the rest",
    )
    add("--data-root", metavar="DIR", help="what `data/...` stands for (default: $REFSEG_DATA)")


def names_in(argument: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in argument.split(",")))
    if not all(names):
        raise UsageError(f"{argument!r} is no list of names")
    return names


def chosen_groups(args: argparse.Namespace) -> list[str]:
    """Breakdowns; a wrong name is told before the work."""
    groups = names_in(args.by) if args.by else []
    for group in groups:
        get_breakdown(group)
    return groups


def chosen_protocols(args: argparse.Namespace) -> list[Protocol]:
    """As named, with the rule for "nothing here" that the options ask for."""
    protocols = [get_protocol(name) for name in names_in(args.protocol)]
    asked = {"rule": args.no_target_rule, "threshold": args.no_target_threshold, "min_area": args.min_area}
    changes = {name: value for name, value in asked.items() if value is not None}
    for protocol in protocols:
        rule = changes.get("rule", protocol.no_target.rule)
        for option, key in (("--no-target-threshold", "threshold"), ("--min-area", "min_area")):
            if key in changes and rule not in READ_BY[key] and protocol.no_target.rule != "none":
                raise UsageError(f"{option} needs --no-target-rule {READ_BY[key][0]}; {protocol.name}'s is {rule}")
    return [protocol.with_no_target(**changes) for protocol in protocols]


def check_min_score(args: argparse.Namespace, paths: Sequence[str]) -> None:
    if args.min_score is not None and not any(is_coco_results(path) and os.path.isfile(path) for path in paths):
        raise UsageError(f"--min-score is for COCO results (.json); {', '.join(paths)} has none")


# Types of options: what is wrong is said in words -------------------------------------------------------------------


def at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return whole


def finite(text: str) -> float:
    number = _number(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return number


def share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number in [0, 1]")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
