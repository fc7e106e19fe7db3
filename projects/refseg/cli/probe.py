"""`refseg probe MODEL --data ...`: does the answer follow the words?"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from refseg.analysis.probes.measure import KINDS, METRICS
from refseg.cli.options import at_least
from refseg.datasets.targets import data_root
from refseg.errors import UsageError
from refseg.terminal import aligned, printable, write_whole

EPILOG = f"""
kinds: {"; ".join(f"{kind}: {what}" for kind, what in KINDS.items())}.
On RefShapes (the folder's refshapes.jsonl) the changed phrase's truth is known; on other data phrases are changed by
rules, and the truth is known where the data have the changed phrase too, and for absent objects.
"""

EXAMPLES = """
refseg probe work_dirs/quickstart --data data/refshapes_mini:test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.compat import dict_action

    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", help="work directory, checkpoint, or config (with WEIGHTS)")
    add("weights", nargs="?", help="checkpoint or work directory, where MODEL is a config")
    add(
        "--data",
        required=True,
        metavar="SET:SPLIT",
        help="a set and its splits, as of `refseg score`",
    )
    add("--rules", action="store_true", help="change words by rule even where meanings are known")
    add("--kinds", metavar="KIND[,KIND]", help=f"{', '.join(KINDS)} (default: all)")
    add("--images", type=at_least(1), metavar="N", help="of the first N images that have pairs (default: all)")
    add("--json", metavar="FILE", help="write numbers and pairs to this file, for `refseg report --probes`")
    add("--resamples", type=at_least(1), default=1000, metavar="N", help="of images, for intervals (1000)")
    add("--data-root", metavar="DIR", help="what `data/...` stands for (default: $REFSEG_DATA)")
    add("--cfg-options", nargs="+", action=dict_action(), default={}, metavar="KEY=VALUE", help="of config keys")
    add("--allow-download", action="store_true", help="let text encoders come from the hub")


def main(args: argparse.Namespace) -> int:
    from refseg.analysis.probes.run import probe_data
    from refseg.evaluation.scorer import open_data
    from refseg.inference.loading import load_model
    from refseg.weights import describe_weights

    kinds = chosen_kinds(args.kinds)
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    with data_root(args.data_root):
        data = open_data(args.data)
        loaded = load_model(args.model, args.weights, cfg_options=args.cfg_options)
        found = probe_data(
            loaded,
            data,
            kinds=kinds,
            use_rules=args.rules,
            most_images=args.images,
            resamples=args.resamples,
        )
    print("\n".join(map(printable, table_lines(found, data.name))))
    if args.json:
        checkpoint = describe_weights(loaded.segmentor, loaded.checkpoint)
        content = {"config": str(loaded.config), "cfg_options": args.cfg_options, "checkpoint": checkpoint, **found}
        write_whole(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


def chosen_kinds(argument: str | None) -> list[str]:
    if argument is None:
        return list(KINDS)
    kinds = [name.strip() for name in argument.split(",")]
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        raise UsageError(f"--kinds: no kind {unknown[0]!r}; there are: {', '.join(KINDS)}")
    return kinds


def table_lines(found: dict[str, Any], data: str) -> list[str]:
    """Of what `probe_data` found."""
    rows = [["probe", "pairs", "truth known", *METRICS, ""]]  # the last column would be to the left
    for line in found["probes"]:
        cells = ["-" if line["metrics"][name] is None else f"{line['metrics'][name]:.1f}" for name in METRICS]
        rows.append([line["kind"], f"{line['pairs']:,}", f"{line['known']:,}", *cells, ""])
    title = f"probes of {data}, {found['images']:,} images, by {found['by']}, in percent"
    return [title, *(f"  {row}" for row in aligned(rows))]
