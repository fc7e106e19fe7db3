"""`refseg test`: evaluate a model on its config's test split."""

from __future__ import annotations

import argparse

from refseg.cli.options import MODEL, WEIGHTS, add_run_options, names_in, run_options

EXAMPLES = """
refseg test work_dirs/quickstart
refseg test work_dirs/quickstart/epoch_3.pth --predictions answers.jsonl
refseg test instalign_swinb weights.pth --split val
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    add_run_options(parser)
    parser.add_argument("--split", help="split of the data, or several: val,test (default: the config's)")
    parser.add_argument("--out", help="write the metrics to this JSON file")
    parser.add_argument(
        "--predictions", help="write the predictions to this file (.jsonl, .jsonl.gz, or .json: COCO results)"
    )


def main(args: argparse.Namespace) -> int:
    from refseg.engine.run import test
    from refseg.inference.loading import find_model

    config, checkpoint = find_model(args.model, args.weights)
    if args.split:
        args.cfg_options = {**args.cfg_options, "test_dataloader.dataset.split": names_in(args.split)}
    weights = None if checkpoint is None else str(checkpoint)  # None: the model brings its own
    test(
        str(config),
        weights,
        run_options(args),
        out=args.out,
        predictions=args.predictions,
    )
    return 0
