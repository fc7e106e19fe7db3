"""``refseg data refshapes --preset mini --out data/refshapes_mini [--workers N] [--overwrite]``."""

import argparse
import sys
from pathlib import Path

from refseg.refshapes.generate import generate
from refseg.refshapes.presets import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="mini", help=f"one of: {', '.join(sorted(PRESETS))} (default: mini)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: data/refshapes_<preset>)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per usable core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")


def main(args: argparse.Namespace) -> int:
    out = args.out or Path("data") / f"refshapes_{args.preset}"
    try:
        meta = generate(args.preset, out, workers=args.workers, overwrite=args.overwrite)
    except ValueError as error:
        print(f"refseg data refshapes: {error}", file=sys.stderr)
        return 1
    for split, counts in meta["counts"].items():
        print(
            f"{split}: {counts['images']} images, {counts['expressions']} expressions "
            f"({counts['no_target']} no-target, {counts['multi_target']} with several referents)"
        )
    return 0
