"""`refseg predict`: predict masks for your own images and phrases."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from refseg.cli.options import WEIGHTS, add_launcher, add_model_options, open_inferencer, share_of_process
from refseg.errors import UsageError
from refseg.inference.inputs import Loading
from refseg.inference.predict import FORMATS, JOURNAL, SOME_FAILED, Output, header_of, predict, tasks_of

EXAMPLES = """
refseg predict refshapes --image drawing.png --text "the red circle" "all stars"
refseg predict work_dirs/quickstart --image photo.jpg --text "the red cup" --out answers --show
refseg predict instalign_swinb weights.pth --jsonl questions.jsonl --out answers
bash tools/dist_predict.sh work_dirs/quickstart 4 --image photos/ --text "the red cup" --out answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name (`refseg models`), work directory, checkpoint, or config (with WEIGHTS)")
    parser.add_argument("weights", nargs="?", help=WEIGHTS)
    many: Any = dict(nargs="+", action="extend", default=[])
    group = parser.add_argument_group("inputs")
    group.add_argument("--image", **many, metavar="IMAGE", help="files, folders, 'patterns', URLs")
    group.add_argument("--text", **many, metavar="TEXT", help="phrases, for every image")
    group.add_argument("--jsonl", metavar="FILE", help='lines of {"image": path, "texts": [...]} instead')
    group.add_argument("--as-stored", action="store_true", help="ignore the rotation in the EXIF data of images")
    group.add_argument("--allow-url", action="store_true", help="allow images from the network")
    group = parser.add_argument_group("outputs")
    group.add_argument("--out", metavar="DIR", help="output folder; an interrupted run continues there")
    group.add_argument("--format", **many, choices=FORMATS, help="more files than predictions.jsonl")
    group.add_argument("--show", action="store_true", help="draw pictures into DIR/pictures")
    group.add_argument("--heat", action="store_true", help="draw a heat map per phrase into DIR/heat")
    group.add_argument("--image-prefix", default="", metavar="URL", help="prefix of the images in labelstudio.json")
    group.add_argument("--restart", action="store_true", help="replace the results in DIR")
    group = parser.add_argument_group("model")
    threshold = "a pixel belongs to the mask if its probability is at least this value"
    group.add_argument("--threshold", type=float, help=threshold)
    group.add_argument("--device", help="default: cuda if available; of several processes, one GPU each")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    group.add_argument("--batch-size", type=int, default=8, help="images per pass (default: 8)")
    group.add_argument("--max-phrases", type=int, default=64, help="phrases of an image per pass (default: 64)")
    failures = "stop after more than this number of unreadable images (default: 100)"
    group.add_argument("--max-failures", type=int, default=100, help=failures)
    add_launcher(group)
    add_model_options(group)


def main(args: argparse.Namespace) -> int:
    """Return SOME_FAILED if some images could not be read, and 0 otherwise.

    Of several processes, all return 0, because torchrun ends the others if one returns anything else.
    """
    start = time.monotonic()
    rank, world_size = share_of_process(args)
    if world_size > 1 and (args.out is None or args.restart):
        what = "need --out DIR" if args.out is None else "cannot --restart: delete --out yourself"
        raise UsageError(f"this is one of {world_size} processes, by WORLD_SIZE or --launcher, which {what}")
    if args.out is None and (args.format or args.show or args.heat or args.restart):
        raise UsageError("--format, --show, --heat and --restart need --out DIR")
    tasks = tasks_of(args.image, args.text, args.jsonl)
    inferencer = open_inferencer(
        args,
        batch_size=args.batch_size,
        max_phrases=args.max_phrases,
        postprocess=None if args.threshold is None else {"threshold": args.threshold},
        loading=Loading(upright=not args.as_stored, allow_url=args.allow_url),
    )
    folder = None if args.out is None else Path(args.out)
    output = Output(folder, frozenset(args.format), args.show, args.heat, args.image_prefix)
    header = {} if output.folder is None else header_of(inferencer, args.cfg_options)
    facts = dict(header=header, restart=args.restart, max_failures=args.max_failures)
    summary = predict(inferencer, tasks, output, **facts, rank=rank, world_size=world_size)
    process = f"process {rank} of {world_size}: " if world_size > 1 else ""
    print(process + summary.in_words(time.monotonic() - start), file=sys.stderr)
    if folder is not None and (summary.merged or world_size == 1):
        print(f"answers: {folder / JOURNAL}", file=sys.stderr)
    return SOME_FAILED if summary.failures and world_size == 1 else 0
