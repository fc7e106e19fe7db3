"""`refseg benchmark`: samples per second, latency and peak memory of a config, on made-up data (the model alone)."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import Config

from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, check_compile, input_size
from refseg.inference.loading import find_device


def time_calls(function: Callable[[], Any], *, warmup: int, iters: int, device: torch.device) -> list[float]:
    """Seconds of each call, the device synchronised around it."""
    times = []
    for number in range(warmup + iters):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warmup:
            times.append(time.perf_counter() - start)
    return times


def peak_memory_mib(device: torch.device) -> float:
    """Allocated on the GPU since the last reset; on the CPU the process's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _row(name: str, times: list[float], num_images: int, num_expressions: int, device: torch.device) -> dict[str, Any]:
    median = statistics.median(times)
    return {
        "what": name,
        "images_per_s": num_images / median,
        "expressions_per_s": num_expressions / median,
        "latency_ms": 1e3 * median,
        "latency_ms_min_max": [1e3 * min(times), 1e3 * max(times)],
        "peak_memory_mib": peak_memory_mib(device),
    }


def benchmark(
    cfg: Config,
    *,
    shape: tuple[int, int] | None = None,
    batch_size: int = 1,
    expressions: int = 1,
    iters: int = 10,
    warmup: int = 3,
    device: str | None = None,
    amp: bool = False,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """One row for inference (to masks at the input's size) and one for a training step with AdamW."""
    where = find_device(device)
    if compiled:
        check_compile(where.type)
    model = build_model(cfg).to(where)
    shape = shape or input_size(cfg)
    data = dummy_batch(
        shape=shape, num_images=batch_size, expressions_per_image=expressions, vocab_size=vocabulary_size(model)
    )
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def context() -> Any:
        return torch.autocast(where.type, torch.bfloat16) if amp else nullcontext()

    def infer() -> None:
        with torch.no_grad(), context():
            for result in forward(**model.data_preprocessor(data, False), mode="predict"):
                result.final_masks()  # restored on request

    def step() -> None:
        with context():
            losses = forward(**model.data_preprocessor(data, True), mode="loss")
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()

    rows = []
    for name, function, mode in (("inference", infer, False), ("training", step, True)):
        model.train(mode)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = time_calls(function, warmup=warmup, iters=iters, device=where)
        rows.append(_row(name, times, batch_size, batch_size * expressions, where))
    return rows
