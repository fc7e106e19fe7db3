"""`refseg benchmark`: measure samples per second, latency and memory of a model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from refseg.analysis.benchmark import benchmark, compare_inference
from refseg.cli.options import at_least
from refseg.engine.run import load_config
from refseg.errors import UsageError
from refseg.inference.loading import find_config

EXAMPLES = """
refseg benchmark instalign_swinb --batch-size 8 --amp
refseg benchmark work_dirs/quickstart --device cpu
refseg benchmark lavt_swinb --compare
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="config, checkpoint, or work directory")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help="default: the config's test size")
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="images per step")
    parser.add_argument("--expressions", type=at_least(1), default=1, help="expressions per image")
    parser.add_argument("--iters", type=at_least(1), default=10)
    parser.add_argument("--warmup", type=at_least(0), default=3)
    parser.add_argument("--device", help="default: cuda if available")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--compile", action="store_true")
    ways = "inference only: fp32, bf16, channels last, and on a GPU compiled, side by side"
    parser.add_argument("--compare", action="store_true", help=ways)
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    if args.compare and (args.amp or args.compile):
        raise UsageError("--compare measures with and without --amp and --compile. Omit them")
    cfg = load_config(str(find_config(args.model)))
    settings: dict[str, Any] = dict(
        shape=args.shape and tuple(args.shape),
        batch_size=args.batch_size,
        expressions=args.expressions,
        iters=args.iters,
        warmup=args.warmup,
        device=args.device,
    )
    if args.compare:
        rows = compare_inference(cfg, **settings)
    else:
        rows = benchmark(cfg, amp=args.amp, backend="inductor" if args.compile else None, **settings)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if args.compare:
        print(f"{'inference':20} {'latency ms':>10} {'speedup':>8} {'changed pixels':>15}")
        for row in rows:
            numbers = f"{row['latency_ms']:10.1f} {row['speedup']:8.2f} {row['changed_pixels']:13.3f} %"
            print(f"{row['way']:20} {numbers}")
        return 0
    print(f"{'':12} {'images/s':>9} {'expr/s':>9} {'latency ms (min..max)':>26} {'peak MiB':>9}")
    for row in rows:
        low, high = row["latency_ms_min_max"]
        latency = f"{row['latency_ms']:.1f} ({low:.1f}..{high:.1f})"
        print(
            f"{row['what']:12} {row['images_per_s']:9.2f} {row['expressions_per_s']:9.2f} {latency:>26} "
            f"{row['peak_memory_mib']:9.0f}"
        )
    return 0
