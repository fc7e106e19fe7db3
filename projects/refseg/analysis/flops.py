"""Parameters, MACs and FLOPs of a config's model, counted by torch's flop counter (`refseg flops`)."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, input_size
from refseg.ops.deformable_attention import ENVIRONMENT_VARIABLE


class _Uncounted(TorchDispatchMode):
    """Counts the output elements of floating-point operators that the flop counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copies = ("clone", "copy_", "_to_copy", "_unsafe_view")
        moves_data_only = func.is_view or func._schema.name.split("::")[1] in copies
        if func.overloadpacket not in flop_registry and not moves_data_only:
            tensors = out if isinstance(out, tuple | list) else (out,)
            count = sum(t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point())
            if count:
                self.elements[func._schema.name.removeprefix("aten::")] += count
        return out


def count(
    cfg: Config,
    *,
    model: torch.nn.Module | None = None,
    shape: tuple[int, int] | None = None,
    num_words: int | None = None,
) -> dict[str, Any]:
    """Count the work for one image and one expression.

    Args:
        model: The config's model, if it is built already.
        shape: (height, width) of the image. None: the input size of the config.
        num_words: Length of the expression in tokens. None: the longest that the config's tokenizer allows.

    Returns:
        "params", "macs", "flops", the "input", the same by "modules" (two levels), and "not_counted_elements": the
        output elements of operators that have no formula.
    """
    model = (model or build_model(cfg)).eval()
    shape, num_words = shape or input_size(cfg), num_words or longest_expression(cfg)
    data = dummy_batch(shape=shape, num_words=num_words, vocab_size=vocabulary_size(model))
    batch = model.data_preprocessor(data, False)["batch"]
    counter, uncounted = FlopCounterMode(display=False), _Uncounted()

    # Run attention and deformable attention without fused kernels, which the counter does not see.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    plain = mock.patch.dict(os.environ, {ENVIRONMENT_VARIABLE: "plain"})
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), plain, counter, uncounted:
            model(batch, mode="tensor")
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)

    root = type(model).__name__
    modules = {}
    for name, by_op in sorted(counter.get_flop_counts().items()):
        if name.startswith(f"{root}.") and name.count(".") <= 2:
            name = name.removeprefix(f"{root}.")
            params = sum(p.numel() for p in model.get_submodule(name).parameters())
            modules[name] = {"params": params, "macs": sum(by_op.values()) // 2}
    flops = counter.get_total_flops()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": flops // 2,
        "flops": flops,
        "input": {"shape": list(shape), "words": num_words, "expressions": 1},
        "modules": modules,
        "not_counted_elements": dict(uncounted.elements.most_common()),
    }


def longest_expression(cfg: Config) -> int:
    """Return the `max_words` of the tokenizer in the config's test pipeline; 20 if it has none."""
    pipeline = (cfg.get("test_dataloader") or {}).get("dataset", {}).get("pipeline", [])
    limits = [step.tokenizer.get("max_words") for step in pipeline if step["type"] == "LoadText"]
    return next(filter(None, limits), 20)


def table(result: dict[str, Any]) -> str:
    """Format the result of `count` for people."""
    height, width = result["input"]["shape"]
    rows = {**result["modules"], "total": result}
    lines = [
        f"{'module':40} {'params (M)':>11} {'MACs (G)':>11}",
        *(f"{name:40} {row['params'] / 1e6:11.3f} {row['macs'] / 1e9:11.3f}" for name, row in rows.items()),
        "",
        f"input {height}x{width}, {result['input']['words']} words, one expression: {result['params'] / 1e6:.2f} M "
        f"parameters, {result['macs'] / 1e9:.2f} GMAC = {result['flops'] / 1e9:.2f} GFLOP.",
        "Published figures of this field called FLOPs are mostly MACs. Counted: matrix products and convolutions.",
        "Not counted (millions of output elements): "
        + ", ".join(f"{name} {n / 1e6:.2f}" for name, n in list(result["not_counted_elements"].items())[:12]),
    ]
    return "\n".join(lines)
