"""Compare the time of SwinEncoder and mmdet's SwinTransformer with the same weights, forward and backward.

    python tools/benchmark/swin.py [--arch base] [--size 480] [--window 12] [--threads 2] [--json result.json]

Both run in fp32, on the GPU if there is one (`--device cpu` for the CPU), in turns in one process. A ratio is a median
of the ratios of consecutive runs, which other work on the machine affects least. There is no stochastic depth, so that
both compute everything. The largest difference of any output is printed beside the largest output.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import make_parser, time_in_turns, write_json

import refseg  # noqa: F401  (so that mmdet can be imported without a compiled mmcv)
from refseg.models.encoders.swin import ARCHS, SwinEncoder


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=5, repeats_help="timed runs of each, after one warm-up run")
    parser.add_argument("--arch", choices=ARCHS, default="base")
    parser.add_argument("--size", type=int, default=480, help="side of the square image")
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--forward-only", action="store_true")
    return parser.parse_args()


def build_pair(args: argparse.Namespace) -> dict[str, Any]:
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    arch = ARCHS[args.arch]
    ours = SwinEncoder(arch=args.arch, window_size=args.window, drop_path_rate=0.0)
    theirs = SwinTransformer(
        embed_dims=arch.embed_dims,
        depths=arch.depths,
        num_heads=arch.num_heads,
        window_size=args.window,
        drop_path_rate=0.0,
    )
    theirs.load_state_dict(ours.state_dict())
    return {"mmdet": theirs.to(args.device), "refseg": ours.to(args.device)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    models = build_pair(args)
    images = torch.randn(args.images, 3, args.size, args.size, device=args.device)

    def forward(name: str) -> list:
        with torch.no_grad():
            levels = models[name](images)
        synchronize()
        return levels

    def both(name: str) -> None:
        models[name].zero_grad()
        sum(level.square().mean() for level in models[name](images)).backward()
        synchronize()

    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else (lambda: None)
    result: dict[str, Any] = {"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    pairs = list(zip(forward("mmdet"), forward("refseg"), strict=True))
    result["largest_difference"] = max((a - b).abs().max().item() for a, b in pairs)
    result["largest_output"] = max(a.abs().max().item() for a, _ in pairs)
    runs = {"forward": forward} if args.forward_only else {"forward": forward, "forward_backward": both}
    for what, run in runs.items():
        calls = {name: (lambda run=run, name=name: run(name)) for name in models}
        times = time_in_turns(calls, args.repeats, warm_ups=1)
        result[what] = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
        result[what]["ratio"] = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    return result


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    print(
        f"Swin {args.arch}, {args.images} x {args.size} x {args.size}, window {args.window}, {args.device}, "
        f"{result['threads']} threads, torch {result['torch']}: medians of {args.repeats}"
    )
    for what in ("forward", "forward_backward"):
        if what in result:
            row = result[what]
            print(
                f"  {what.replace('_', ' + '):18} mmdet {row['mmdet_ms']:8.1f} ms   "
                f"refseg {row['refseg_ms']:8.1f} ms   {row['ratio']:5.2f}x"
            )
    print(f"  largest difference {result['largest_difference']:.1e}, largest output {result['largest_output']:.1f}")
    write_json(args.json, result)


if __name__ == "__main__":
    main()
