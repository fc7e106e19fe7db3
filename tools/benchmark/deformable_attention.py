"""Compare the time of multi-scale deformable attention: refseg against mmcv's `grid_sample` function.

    python tools/benchmark/deformable_attention.py [--size 480] [--threads 2] [--json result.json]
    python tools/benchmark/deformable_attention.py --device cuda --dtype bfloat16 --images 8

The shapes are Mask2Former's: levels at strides 8, 16 and 32, one query per pixel, 8 heads of 32 channels, 4 points. The
two are timed in turns, so that a ratio compares runs of the same minute. Every number is a median. On the CPU,
everything runs twice, in separate processes: with the default allocator of the C library, and with one that keeps freed
memory (the environment variables of TUNED), which makes both faster. The errors are those of both against mmcv's
function in float64, as shares of the norm: of the output and of the derivatives. `--dtype` is that of the values; as
with autocast, refseg gets locations and weights in float32, and mmcv's function gets everything in one dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from common import make_parser, time_in_turns, write_json

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=11, repeats_help="timed runs of each, after two warm-up runs")
    parser.add_argument("--size", type=int, default=480, help="side of the square image")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the values")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_inputs(shapes: list[tuple[int, int]], images: int) -> tuple:
    """Return inputs like those of a trained encoder: locations a few pixels from the query, in all levels."""
    import torch

    torch.manual_seed(0)
    grids = [torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy") for h, w in shapes]
    centers = torch.cat([torch.stack(grid, dim=-1).flatten(0, 1) for grid in grids])  # (Q, 2)
    queries = len(centers)
    size = torch.tensor([[w, h] for h, w in shapes])[:, None]  # (L, 1, 2)
    offsets = 2 * torch.randn(images, queries, HEADS, len(shapes), POINTS, 2) / size
    weights = torch.rand(images, queries, HEADS, len(shapes), POINTS)
    value = torch.randn(images, queries, HEADS, CHANNELS)
    return value, centers[:, None, None, None] + offsets, weights / weights.sum((-2, -1), keepdim=True)


def saved_bytes(function: Callable, tensors: list) -> int:
    import torch

    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(*tensors)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from refseg.ops import (  # first, so that mmcv.ops can be imported without its compiled extension
        choose_backend,
        deformable_attention,
    )

    if args.threads:
        torch.set_num_threads(args.threads)
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    dtype = getattr(torch, args.dtype)
    shapes = [(args.size // stride, args.size // stride) for stride in STRIDES]
    spatial_shapes = torch.tensor(shapes, device=args.device)
    value, locations, weights = (tensor.to(args.device) for tensor in make_inputs(shapes, args.images))
    inputs = [tensor.requires_grad_() for tensor in (value.to(dtype), locations, weights)]
    grad = torch.randn(args.images, value.shape[1], HEADS * CHANNELS).to(inputs[0])
    calls = {
        "refseg": lambda v, x, w: deformable_attention(v, shapes, x, w),
        "grid_sample": lambda v, x, w: multi_scale_deformable_attn_pytorch(v, spatial_shapes, x.to(v), w.to(v)),
    }

    def wait() -> None:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def forward(name: str) -> None:
        with torch.no_grad():
            calls[name](*inputs)
        wait()

    def both(name: str) -> None:
        torch.autograd.grad(calls[name](*inputs), inputs, grad)
        wait()

    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    result["backend"] = choose_backend(inputs[0])[0]
    for what, run in (("forward", forward), ("forward_backward", both)):
        functions = {name: lambda run=run, name=name: run(name) for name in calls}
        times = time_in_turns(functions, args.repeats, warm_ups=2, untimed=1)
        medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        result[what] = {f"{name}_ms": value for name, value in medians.items()}
        result[what]["ratio"] = medians["grid_sample"] / medians["refseg"]
    saved = {name: saved_bytes(call, inputs) for name, call in calls.items()}
    result["saved_mb"] = {name: value / 1e6 for name, value in saved.items()}
    result["error"] = relative_errors(calls, inputs, grad)
    return result


def relative_errors(calls: dict[str, Callable], inputs: list, grad: Any) -> dict[str, dict[str, float]]:
    """Return the norms of the errors against mmcv's function in float64, as shares of the norms of the right values."""
    import torch

    def run(call: Callable, tensors: list, grad: Any) -> list:
        out = call(*tensors)
        return [out, *torch.autograd.grad(out, tensors, grad)]

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    right = run(calls["grid_sample"], wide, grad.double())
    names = ("output", "value", "sampling_locations", "attention_weights")
    return {
        name: {
            what: ((mine.double() - true).norm() / true.norm()).item()
            for what, mine, true in zip(names, run(call, inputs, grad), right, strict=True)
        }
        for name, call in calls.items()
    }


def main() -> None:
    args = parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    results = {}
    allocators: dict[str, dict] = {"default": {}, "tuned": TUNED} if args.device == "cpu" else {"default": {}}
    for allocator, extra in allocators.items():
        environment = {name: value for name, value in os.environ.items() if name not in TUNED} | extra
        command = [sys.executable, *sys.argv, "--worker"]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[allocator] = result = json.loads(output.splitlines()[-1])
        print(
            f"{args.device} ({result['backend']}), allocator: {allocator} ({result['threads']} threads, torch "
            f"{result['torch']}), medians of {args.repeats}"
        )
        for what in ("forward", "forward_backward"):
            row = result[what]
            print(
                f"  {what.replace('_', ' + '):20} grid_sample {row['grid_sample_ms']:8.1f} ms   "
                f"refseg {row['refseg_ms']:7.1f} ms   {row['ratio']:5.1f}x"
            )
        saved = result["saved_mb"]
        print(
            f"  {'saved for backward':20} grid_sample {saved['grid_sample']:8.1f} MB   refseg {saved['refseg']:7.1f} MB"
        )
        for name, errors in result["error"].items():
            print(f"  error of {name:11} " + ", ".join(f"{what} {error:.1e}" for what, error in errors.items()))
    write_json(args.json, results)


if __name__ == "__main__":
    main()
