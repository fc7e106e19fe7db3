"""Options that several verbs share, and their checks."""

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
predictions can be
  a prediction file (.jsonl, .jsonl.gz), as `refseg test --predictions` writes it (fields: docs/protocols.md)
  a folder of PNGs, one per expression, named by expression id. Characters that a file name cannot have are
    percent-encoded (a/b is a%2Fb.png). Gray, black and white, or RGB: 0 is background, everything else is mask
  COCO results (.json): a list of objects with an id (the first of expression_id, image_id and id that the first entry
    has), segmentation (an RLE), score and bbox. Entries with the same id are one answer. Their masks are merged, and
    each entry is a box: its bbox, or the box around its mask. "Nothing here" is an entry with an empty mask, or no
    entry and --absent-is-nothing
"""


def add_shared_arguments(
    parser: argparse.ArgumentParser, *, protocols: str, by: str, data_required: bool = True
) -> None:
    """Add the options that `refseg score`, `refseg compare` and `refseg report` share.

    Args:
        parser: parser of the verb.
        protocols: metavar of --protocol.
        by: default of --by.
        data_required: whether --data must be given.
    """
    parser.epilog = FORMATS
    add = parser.add_argument
    add(
        "--data",
        required=data_required,
        metavar="SET:SPLIT",
        help="data set (a name from `refseg data layout`, a JSONL file or a folder) and its splits: grefcoco:testA, "
        "refcoco:val,testA, my.jsonl:test (default: all splits)",
    )
    add("--protocol", default="refseg", metavar=protocols, help=f"{', '.join(PROTOCOLS)} (default: refseg)")
    groups = ", ".join([*BREAKDOWNS, f"{TAG}NAME"])
    add("--by", default=by, metavar="GROUP[,GROUP]", help=f"break down by {groups} (default: {by or 'none'})")
    add("--json", metavar="FILE", help="also write all results to this file")
    add("--no-target-rule", choices=get_args(NoTargetRule), help="rule for 'nothing here', instead of the protocol's")
    head = "no-target probability above which a phrase is rejected (default: 0.5; rules head and head-or-empty)"
    add("--no-target-threshold", type=probability, metavar="P", help=head)
    area = "mask area below which a phrase is rejected (default: 50; rule area)"
    add("--min-area", type=at_least(1), metavar="PIXELS", help=area)
    add("--min-score", type=finite, metavar="S", help="ignore masks of COCO results with a lower score")
    add("--absent-is-nothing", action="store_true", help="count a missing prediction as the answer 'nothing here'")
    add("--drop-no-target", action="store_true", help="ignore expressions that refer to nothing")
    partial = "report missing, duplicate, extra and wrong-sized predictions, and score the rest"
    add("--allow-partial", action="store_true", help=partial)
    add_data_root(parser)


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="folder to use for `data/...` paths (default: $REFSEG_DATA)")


def names_in(argument: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in argument.split(",")))
    if not all(names):
        raise UsageError(f"{argument!r} is not a list of names, as in a,b")
    return names


def chosen_groups(args: argparse.Namespace) -> list[str]:
    """Return the names of --by. An unknown name is an error before any work is done."""
    groups = names_in(args.by) if args.by else []
    for group in groups:
        get_breakdown(group)
    return groups


def chosen_protocols(args: argparse.Namespace) -> list[Protocol]:
    """Return the protocols of --protocol, with the options' rule for "nothing here"."""
    protocols = [get_protocol(name) for name in names_in(args.protocol)]
    options = {"rule": args.no_target_rule, "threshold": args.no_target_threshold, "min_area": args.min_area}
    changes = {name: value for name, value in options.items() if value is not None}
    for protocol in protocols:
        rule = changes.get("rule", protocol.no_target.rule)
        for option, key in (("--no-target-threshold", "threshold"), ("--min-area", "min_area")):
            if key in changes and rule not in READ_BY[key] and protocol.no_target.rule != "none":
                raise UsageError(f"{option} needs --no-target-rule {READ_BY[key][0]}. {protocol.name} uses {rule}")
    return [protocol.with_no_target(**changes) for protocol in protocols]


def check_min_score(args: argparse.Namespace, paths: Sequence[str]) -> None:
    if args.min_score is not None and not any(is_coco_results(path) and os.path.isfile(path) for path in paths):
        raise UsageError(f"--min-score needs COCO results (.json), and {', '.join(paths)} has none")


# Types of options. argparse shows the message of an ArgumentTypeError. ----------------------------------------------


def at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return convert


def finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def probability(text: str) -> float:
    number = finite(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]")
    return number
