"""`refseg finetune`: fine-tune a model on your own images and phrases."""

from __future__ import annotations

import argparse
import re

from refseg.cli.options import add_model_options, at_least, probability

EXAMPLES = """
refseg finetune own.jsonl --out work_dirs/own --time 10m
refseg finetune own.jsonl --from clipseg --allow-download --out work_dirs/own
refseg finetune own.jsonl --from work_dirs/earlier --out work_dirs/later --freeze vision
refseg finetune own.jsonl --from vit_small_patch14_dinov2+minilm --lora --out work_dirs/own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.finetuning.run import DEFAULT_OUT, DEFAULT_START, SCRATCH

    start = (
        "where to start: an encoder pair VISION+TEXT (a name of timm and one of transformers), "
        f"{SCRATCH}, a name that `refseg models` lists, a work directory, or a checkpoint (default: {DEFAULT_START})"
    )
    add = parser.add_argument
    add("data", help="JSONL file (docs/data.md). Without a val split, some images are held out")
    add("--from", dest="start", default=DEFAULT_START, metavar="MODEL", help=start)
    add("--out", default=DEFAULT_OUT, metavar="DIR", help="output folder; an interrupted run continues there")
    add("--time", type=duration, metavar="TIME", help="limit of the training: 90s, 10m, 2h (default: none)")
    add("--steps", type=at_least(2), metavar="N", help="steps of the training (default: by the size of the data)")
    add("--image-size", type=at_least(32), metavar="SIDE", help="side of the square that images are resized to")
    add("--batch-size", type=at_least(1), metavar="N", help="images per step")
    add("--freeze", nargs="+", default=[], metavar="PART", help="encoders that stay as they are: vision, text")
    lora = "large encoders that stay, and get trained additions of low rank (LoRA): vision, text (default: both)"
    add("--lora", nargs="*", metavar="PART", help=lora)
    negatives = (
        "share of the phrases with targets that are replaced by ones that refer to nothing in the image (default: what "
        "the data lack to 15 percent of such phrases)"
    )
    add("--negatives", type=probability, metavar="SHARE", help=negatives)
    add("--seed", type=int, default=0, help="of the split and the training (default: 0)")
    add("--launcher", choices=["none", "pytorch"], default="none", help="pytorch: one of several processes of torchrun")
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    add_model_options(parser)


def main(args: argparse.Namespace) -> int:
    from refseg.engine.param_groups import ROLES
    from refseg.finetuning.run import finetune, parse_parts

    finetune(
        args.data,
        model=args.start,
        out=args.out,
        seconds=args.time,
        steps=args.steps,
        image_size=args.image_size,
        batch_size=args.batch_size,
        freeze=parse_parts(args.freeze),
        lora=ROLES if args.lora == [] else parse_parts(args.lora or ()),
        negatives=args.negatives,
        seed=args.seed,
        cfg_options=args.cfg_options,
        launcher=args.launcher,
    )
    return 0


def duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 10m, or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 10m, or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "": 1}[found[2]]
