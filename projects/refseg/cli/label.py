"""`refseg label`: write pseudo-labels of your own images, with a model as the teacher."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from refseg.cli.options import WEIGHTS, add_launcher, add_model_options, open_inferencer, probability, share_of_process
from refseg.inference.inputs import Loading
from refseg.inference.label import LabelRun, Rules, Splits, label_tasks
from refseg.inference.predict import SOME_FAILED, header_of

EXAMPLES = """
refseg label refshapes --images drawings/ --vocabulary "the red circle" "all stars" --out own.jsonl
refseg label sam3 --images 'photos/*.jpg' --phrases phrases.txt --out own.jsonl --val-share 0.1
refseg label instalign_swinb weights.pth --phrases tasks.jsonl --out own.jsonl --confidence 0.8
torchrun --nproc-per-node 4 -m refseg.cli label work_dirs/quickstart --images photos --phrases p.txt --out own.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name (`refseg models`), work directory, checkpoint, or config (with WEIGHTS)")
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    many: Any = dict(nargs="+", action="extend", default=[])
    group = parser.add_argument_group("inputs")
    group.add_argument("--images", **many, metavar="IMAGE", help="files, folders, 'patterns'")
    phrases = 'text file with one phrase per line for every image, or .jsonl of {"image": path, "texts": [...]}'
    group.add_argument("--phrases", metavar="FILE", help=phrases)
    group.add_argument("--vocabulary", **many, metavar="TEXT", help="phrases, for every image")
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE", help="JSONL file; an interrupted run continues")
    positive = "least confidence of a positive (default: 0.5)"
    group.add_argument("--confidence", type=probability, default=0.5, metavar="P", help=positive)
    negative = "least no-target probability of a negative (default: 0.9)"
    group.add_argument("--negative-confidence", type=probability, default=0.9, metavar="P", help=negative)
    empty = "for models without no-target probability: an empty answer is a negative"
    group.add_argument("--empty-is-negative", action="store_true", help=empty)
    group.add_argument("--split", default="train", metavar="NAME", help="split of the rows (default: train)")
    share = "share of the images in split val, chosen by a hash of their paths (default: 0)"
    group.add_argument("--val-share", type=probability, default=0.0, metavar="P", help=share)
    group.add_argument("--seed", type=int, default=0, help="seed of --val-share (default: 0)")
    group = parser.add_argument_group("model")
    threshold = "a pixel belongs to the mask if its probability is at least this value"
    group.add_argument("--threshold", type=float, help=threshold)
    group.add_argument("--device", help="default: cuda if available; under torchrun, one GPU per process")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    together = "phrases per pass for models that read the words inside the image encoder (default: 8)"
    group.add_argument("--batch-size", type=int, default=8, help=together)
    group.add_argument("--max-phrases", type=int, default=64, help="phrases per pass for other models (default: 64)")
    failures = "stop after more than this number of unreadable images (default: 100)"
    group.add_argument("--max-failures", type=int, default=100, help=failures)
    add_launcher(group)
    add_model_options(group)


def main(args: argparse.Namespace) -> int:
    """Return SOME_FAILED if some images could not be read, and 0 otherwise.

    Of several processes, all return 0, because torchrun ends the others if one returns anything else.
    """
    # Images, phrases, and the share of this process
    rank, world_size = share_of_process(args)
    out = Path(args.out)
    tasks = label_tasks(args.images, args.phrases, args.vocabulary, out)
    # The model. It sees images as stored, because training and `refseg data check` do.
    inferencer = open_inferencer(
        args,
        batch_size=args.batch_size,
        max_phrases=args.max_phrases,
        postprocess=None if args.threshold is None else {"threshold": args.threshold},
        loading=Loading(upright=False),
    )
    # The answers, and the output once all processes have answered
    run = LabelRun(
        out,
        tasks,
        Rules(args.confidence, args.negative_confidence, args.empty_is_negative),
        Splits(args.split, args.val_share, args.seed),
        labeled_by=inferencer.loaded.name,
        header=header_of(inferencer, args.cfg_options),
        rank=rank,
        world_size=world_size,
    )
    run.answer(inferencer, max_failures=args.max_failures)
    summary = run.merge()
    if summary is None:
        print(f"process {rank} of {world_size} is done. The last process to finish writes {out}", file=sys.stderr)
        return 0
    print("\n".join([f"{out}: {summary.lines()[0]}", *summary.lines()[1:]]))
    print(f"Review the labels: refseg data check {out}\n                   refseg data browse {out}")
    return SOME_FAILED if summary.failures and world_size == 1 else 0
