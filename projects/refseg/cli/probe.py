"""`refseg probe`: change one thing in each phrase and measure whether the answer follows."""

from __future__ import annotations

import argparse
import json

from refseg.analysis.probes.measure import KINDS, METRICS
from refseg.cli.options import WEIGHTS, add_data_root, add_model_options, at_least, names_in
from refseg.datasets.targets import data_root
from refseg.errors import UsageError
from refseg.terminal import aligned, printable, write_whole

EPILOG = f"""
kinds: {"; ".join(f"{kind}: {what}" for kind, what in KINDS.items())}.
On RefShapes (refshapes.jsonl in its folder), the truth of a changed phrase is known. On other data, rules change the
phrases, and the truth is known for absent objects and for changed phrases that are also in the data.
"""

EXAMPLES = """
refseg probe work_dirs/quickstart --data data/refshapes_mini:test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", help="work directory, checkpoint, or config (with WEIGHTS)")
    add("weights", nargs="?", help=WEIGHTS)
    add("--data", required=True, metavar="SET:SPLIT", help="data set and its splits, as for `refseg score`")
    add("--rules", action="store_true", help="change words by rule even if meanings are known")
    add("--kinds", metavar="KIND[,KIND]", help=f"{', '.join(KINDS)} (default: all)")
    add("--images", type=at_least(1), metavar="N", help="use only the first N images that have pairs")
    add("--json", metavar="FILE", help="also write numbers and pairs to this file, for `refseg report --probes`")
    add("--resamples", type=at_least(1), default=1000, metavar="N", help="image resamples for intervals (1000)")
    add_data_root(parser)
    add_model_options(parser)


def main(args: argparse.Namespace) -> int:
    from refseg.analysis.probes.run import probe_data
    from refseg.evaluation.scorer import open_data
    from refseg.inference.loading import load_model
    from refseg.weights import describe_weights

    kinds = list(KINDS) if args.kinds is None else names_in(args.kinds)
    kinds = ["color" if kind == "colour" else kind for kind in kinds]  # its old spelling
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--kinds: unknown kind {kind!r}. Valid kinds: {', '.join(KINDS)}")
    with data_root(args.data_root):
        data = open_data(args.data)
        loaded = load_model(args.model, args.weights, cfg_options=args.cfg_options)
        result = probe_data(
            loaded, data, kinds=kinds, use_rules=args.rules, most_images=args.images, resamples=args.resamples
        )
    rows = [["probe", "pairs", "truth known", *METRICS, ""]]  # `aligned` puts the last column to the left
    for line in result["probes"]:
        cells = ["-" if line["metrics"][name] is None else f"{line['metrics'][name]:.1f}" for name in METRICS]
        rows.append([line["kind"], f"{line['pairs']:,}", f"{line['known']:,}", *cells, ""])
    title = f"probes of {data.name}, {result['images']:,} images, by {result['by']}, in percent"
    print("\n".join(map(printable, [title, *(f"  {row}" for row in aligned(rows))])))
    if args.json:
        checkpoint = describe_weights(loaded.segmentor, loaded.checkpoint)
        content = {"config": str(loaded.config), "cfg_options": args.cfg_options, "checkpoint": checkpoint, **result}
        write_whole(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0
