"""`refseg flops`: count parameters, MACs and FLOPs of a model."""

from __future__ import annotations

import argparse
import json

from refseg.analysis.flops import count, table
from refseg.cli.options import add_cfg_options
from refseg.engine.run import RunOptions, load_config
from refseg.inference.loading import find_config

EXAMPLES = """
refseg flops instalign_swinb
refseg flops work_dirs/quickstart --shape 480 480
refseg flops vipa_swinb --cfg-options model.decoder.ffn_ratio=4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="config, checkpoint, or work directory")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help="default: the config's test size")
    parser.add_argument("--words", type=int, help="tokens of the phrase (default: the most that the config allows)")
    parser.add_argument("--json", action="store_true", help="print JSON with params, macs, flops")
    add_cfg_options(parser)


def main(args: argparse.Namespace) -> int:
    cfg = load_config(str(find_config(args.model)), RunOptions(cfg_options=args.cfg_options))
    result = count(cfg, shape=args.shape and tuple(args.shape), num_words=args.words)
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0
