"""`refseg flops`: parameters, MACs and FLOPs, counted by torch's flop counter on a path that it sees whole."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from refseg.apis.dummy import build_model, dummy_batch, input_size, vocabulary_size
from refseg.ops.deformable_attention import ENVIRONMENT_VARIABLE


class _Uncounted(TorchDispatchMode):
    """Output elements, by operator, of floating-point operators that the flop counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        moves_data_only = func.is_view or func._schema.name.split("::")[1] in (
            "clone",
            "copy_",
            "_to_copy",
            "_unsafe_view",
        )
        if func.overloadpacket not in flop_registry and not moves_data_only:
            tensors = out if isinstance(out, tuple | list) else (out,)
            count = sum(t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point())
            if count:
                self.elements[func._schema.name.removeprefix("aten::")] += count
        return out


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and deformable attention as matrix products and gathers, not as kernels that the counter skips."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), mock.patch.dict(os.environ, {ENVIRONMENT_VARIABLE: "plain"}):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def count(cfg: Config, *, shape: tuple[int, int] | None = None, num_words: int = 20) -> dict[str, Any]:
    """params, macs, flops, by module (two levels), and what was not counted; one image, one expression."""
    model = build_model(cfg).eval()
    shape = shape or input_size(cfg)
    data = dummy_batch(shape=shape, num_words=num_words, vocab_size=vocabulary_size(model))
    batch = model.data_preprocessor(data, False)["batch"]
    counter, uncounted = FlopCounterMode(display=False), _Uncounted()
    with torch.no_grad(), plain_kernels(), counter, uncounted:
        model(batch, mode="tensor")
    root = type(model).__name__
    modules = {}
    for name, by_op in counter.get_flop_counts().items():
        if name.startswith(f"{root}.") and name.count(".") <= 2:
            modules[name.removeprefix(f"{root}.")] = sum(by_op.values())
    flops = counter.get_total_flops()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": flops // 2,
        "flops": flops,
        "input": {"shape": list(shape), "words": num_words, "expressions": 1},
        "modules": {
            name: {"params": sum(p.numel() for p in model.get_submodule(name).parameters()), "macs": value // 2}
            for name, value in sorted(modules.items())
        },
        "not_counted_elements": dict(uncounted.elements.most_common()),
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    height, width = result["input"]["shape"]
    lines = [f"{'module':40} {'params (M)':>11} {'MACs (G)':>11}"]
    for name, row in result["modules"].items():
        lines.append(f"{name:40} {row['params'] / 1e6:11.3f} {row['macs'] / 1e9:11.3f}")
    lines += [
        f"{'total':40} {result['params'] / 1e6:11.3f} {result['macs'] / 1e9:11.3f}",
        "",
        f"input {height}x{width}, {result['input']['words']} words, one expression: {result['params'] / 1e6:.2f} M "
        f"parameters, {result['macs'] / 1e9:.2f} GMAC = {result['flops'] / 1e9:.2f} GFLOP.",
        "Published figures of this field called FLOPs are mostly MACs. Counted: matrix products and convolutions.",
        "Not counted (millions of output elements): "
        + ", ".join(f"{name} {n / 1e6:.2f}" for name, n in list(result["not_counted_elements"].items())[:12]),
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="config, checkpoint, or work directory")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help="default: the config's test size")
    parser.add_argument("--words", type=int, default=20, help="tokens of the phrase")
    parser.add_argument("--json", action="store_true", help="print JSON with params, macs, flops")


def main(args: argparse.Namespace) -> int:
    from refseg.apis.models import find_config
    from refseg.apis.runner import load_config

    cfg = load_config(str(find_config(args.model)))
    result = count(cfg, shape=args.shape and tuple(args.shape), num_words=args.words)
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0
