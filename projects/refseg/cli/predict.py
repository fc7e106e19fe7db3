"""`refseg predict`: masks for images and phrases of your own."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from refseg.errors import UsageError
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import Loading
from refseg.inference.predict import FORMATS, JOURNAL, SOME_FAILED, Output, header_of, predict, tasks_of

EXAMPLES = """
refseg predict work_dirs/quickstart --image photo.jpg --text "the red cup" --out answers --show
refseg predict instalign_swinb weights.pth --jsonl questions.jsonl --out answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.compat import dict_action

    parser.add_argument("model", help="work directory, checkpoint, or config (with WEIGHTS)")
    parser.add_argument("weights", nargs="?", help="checkpoint or work directory, where MODEL is a config")
    what = parser.add_argument_group("what")
    what.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="IMAGE", help="files, folders, 'patterns', URLs"
    )
    what.add_argument(
        "--text", nargs="+", action="extend", default=[], metavar="TEXT", help="phrases, for all of the images"
    )
    what.add_argument("--jsonl", metavar="FILE", help='lines of {"image": path, "texts": [...]} instead')
    where = parser.add_argument_group("where to")
    where.add_argument("--out", metavar="DIR", help="folder for the answers; a run that was killed goes on in it")
    where.add_argument(
        "--format", nargs="+", action="extend", choices=FORMATS, default=[], help="files besides predictions.jsonl"
    )
    where.add_argument("--show", action="store_true", help="draw pictures, into DIR/pictures")
    where.add_argument("--heat", action="store_true", help="draw heat maps of each phrase, into DIR/heat")
    where.add_argument("--image-prefix", default="", metavar="URL", help="of images in labelstudio.json")
    where.add_argument("--restart", action="store_true", help="begin anew in DIR, without what is there")
    how = parser.add_argument_group("how")
    how.add_argument("--threshold", type=float, help="probability from which on a pixel is mask")
    how.add_argument("--device", help="default: cuda where there is one")
    how.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    how.add_argument("--batch-size", type=int, default=8, help="images per pass")
    how.add_argument("--max-phrases", type=int, default=64, help="phrases per pass, where they share an image")
    how.add_argument("--max-failures", type=int, default=100, help="unreadable images that are skipped")
    how.add_argument("--as-stored", action="store_true", help="do not turn images as their EXIF data say")
    how.add_argument("--allow-url", action="store_true", help="let images come from the network")
    how.add_argument("--allow-download", action="store_true", help="let text encoders come from the hub")
    how.add_argument("--cfg-options", nargs="+", action=dict_action(), default={}, metavar="KEY=VALUE")


def main(args: argparse.Namespace) -> int:
    """Exit code 0 when all images are answered, whatever was found in them, and SOME_FAILED otherwise."""
    start = time.monotonic()
    if args.out is None and (args.format or args.show or args.heat or args.restart):
        raise UsageError("--format, --show, --heat and --restart need --out DIR")
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    tasks = tasks_of(args.image, args.text, args.jsonl)
    inferencer = ReferringInferencer(
        args.model,
        args.weights,
        device=args.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        max_phrases=args.max_phrases,
        postprocess=None if args.threshold is None else {"threshold": args.threshold},
        loading=Loading(upright=not args.as_stored, allow_url=args.allow_url),
        cfg_options=args.cfg_options,
    )
    folder = None if args.out is None else Path(args.out)
    output = Output(folder, frozenset(args.format), args.show, args.heat, args.image_prefix)
    header = {} if output.folder is None else header_of(inferencer, args.cfg_options)
    summary = predict(inferencer, tasks, output, header=header, restart=args.restart, max_failures=args.max_failures)
    print(summary.told(time.monotonic() - start), file=sys.stderr)
    if output.folder is not None:
        print(f"answers: {output.folder / JOURNAL}", file=sys.stderr)
    return SOME_FAILED if summary.failures else 0
