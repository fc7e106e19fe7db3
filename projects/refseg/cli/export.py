"""`refseg export`: write a model as ONNX graphs, and print how its answers compare with the original's."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from refseg.cli.options import MODEL, WEIGHTS, add_data_root, add_model_options, at_least, finite, probability
from refseg.datasets.targets import data_root
from refseg.shipped import ShapesOnlyWarning

EXAMPLES = """
refseg export refshapes --out refshapes_onnx
refseg export work_dirs/finetune --out model_onnx --int8 --data my.jsonl:val
refseg predict model_onnx --image photo.jpg --text "the red cup"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.export.run import Limits

    limits = Limits()
    parser.add_argument("model", help=f"{MODEL}, or name (`refseg models`)")
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the exported model")
    parser.add_argument("--int8", action="store_true", help="also write a model with 8-bit weights, to DIR/int8")
    add_model_options(parser)
    group = parser.add_argument_group("comparison")
    data = "compare on these images and phrases, and show gIoU (default: examples that come with refseg)"
    group.add_argument("--data", metavar="SET:SPLIT", help=data)
    group.add_argument("--samples", type=at_least(1), default=8, metavar="N", help="images to compare on (default: 8)")
    add_data_root(parser)
    group = parser.add_argument_group("limits: a model that exceeds one is not kept")
    logits = f"largest difference of a logit in fp32 (default: {limits.logit_difference})"
    group.add_argument("--max-logit-difference", type=finite, default=limits.logit_difference, metavar="D", help=logits)
    iou = f"smallest IoU of a mask with the original's in fp32 (default: {limits.iou})"
    group.add_argument("--min-iou", type=probability, default=limits.iou, metavar="IOU", help=iou)
    int8 = f"smallest mean IoU in int8 (default: {limits.int8_iou})"
    group.add_argument("--min-int8-iou", type=probability, default=limits.int8_iou, metavar="IOU", help=int8)


def main(args: argparse.Namespace) -> int:
    from refseg.export.run import Limits, export

    with data_root(args.data_root), warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapesOnlyWarning)  # `refseg models` says so
        export(
            args.model,
            args.weights,
            Path(args.out),
            int8=args.int8,
            data=args.data,
            samples=args.samples,
            limits=Limits(args.max_logit_difference, args.min_iou, args.min_int8_iou),
            cfg_options=args.cfg_options,
        )
    return 0
