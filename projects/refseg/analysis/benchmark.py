"""Throughput, latency and peak memory of a config's model, on synthetic data (`refseg benchmark`)."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config

from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, check_compile, input_size
from refseg.inference.loading import find_device


def benchmark(
    cfg: Config,
    *,
    model: torch.nn.Module | None = None,
    modes: Sequence[str] | None = None,
    shape: tuple[int, int] | None = None,
    batch_size: int = 1,
    expressions: int = 1,
    iters: int = 10,
    warmup: int = 3,
    device: str | None = None,
    amp: bool = False,
    backend: str | None = None,
) -> list[dict[str, Any]]:
    """Time inference (up to masks at the input's size) and a training step with AdamW.

    Args:
        model: The config's model, if it is built already.
        modes: "inference", "training", or both. None: both, unless the config is for evaluation only.
        shape: (height, width) of the images. None: the input size of the config.
        batch_size: Number of images.
        expressions: Number of expressions per image.
        iters: Number of timed calls.
        warmup: Number of calls before them.
        device: Name of the device. None: the GPU if there is one.
        amp: Use bfloat16 autocast.
        backend: Backend of `torch.compile`, such as "inductor". None: do not compile.

    Returns:
        A row for each mode.
    """
    where = find_device(device)
    if backend == "inductor":
        check_compile(where.type)
    model = (model or build_model(cfg)).to(where)
    data = make_batch(cfg, model, shape, batch_size, expressions)
    if where.type == "cuda":
        data["batch"] = data["batch"].pin_memory()
    calls = make_calls(model, data, amp=amp, backend=backend)
    rows = []
    on_gpu = where.type == "cuda"
    for mode in modes or (("inference", "training") if cfg.get("train_cfg") else ("inference",)):
        model.train(mode == "training")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(where)

        # Time each call, with the device synchronized around it. Leave out the warm-up calls.
        times = []
        for number in range(warmup + iters):
            if on_gpu:
                torch.cuda.synchronize(where)
            start = time.perf_counter()
            calls[mode]()
            if on_gpu:
                torch.cuda.synchronize(where)
            if number >= warmup:
                times.append(time.perf_counter() - start)

        # Peak memory: of the GPU since the reset, or of the process so far.
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if on_gpu:
            peak_mib = torch.cuda.max_memory_allocated(where) / 2**20
        median = statistics.median(times)
        rows.append(
            {
                "what": mode,
                "images_per_s": batch_size / median,
                "expressions_per_s": batch_size * expressions / median,
                "latency_ms": 1e3 * median,
                "latency_ms_min_max": [1e3 * min(times), 1e3 * max(times)],
                "peak_memory_mib": peak_mib,
            }
        )
    return rows


def compare_inference(
    cfg: Config,
    *,
    shape: tuple[int, int] | None = None,
    batch_size: int = 1,
    expressions: int = 1,
    iters: int = 10,
    warmup: int = 3,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Time inference in fp32 and bf16, with both memory formats, and compiled where there is a GPU.

    The ways run in turns, so that their ratios compare calls of the same minute. Arguments are those of `benchmark`.

    Returns:
        A row for each way: its name, the median latency, how many times as fast as fp32 it is, and the share of pixels
        (percent) whose answer differs from that in fp32.
    """
    where = find_device(device)
    model = build_model(cfg).to(where).eval()
    channels_last = deepcopy(model).to(memory_format=torch.channels_last)
    data = make_batch(cfg, model, shape, batch_size, expressions)
    ways: dict[str, dict[str, Any]] = {
        "fp32": dict(model=model),
        "fp32, channels last": dict(model=channels_last),
        "bf16": dict(model=model, amp=True),
        "bf16, channels last": dict(model=channels_last, amp=True),
    }
    if where.type == "cuda":
        ways["bf16, compiled"] = dict(model=model, amp=True, backend="inductor")
    calls = {name: make_calls(data=data, **how)["inference"] for name, how in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    masks: dict[str, list[torch.Tensor]] = {}
    for number in range(warmup + iters):
        for name, call in calls.items():
            start = time.perf_counter()
            masks[name] = call()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "way": name,
            "latency_ms": 1e3 * median,
            "speedup": medians["fp32"] / median,
            "changed_pixels": 100 * share_of_changes(masks[name], masks["fp32"]),
        }
        for name, median in medians.items()
    ]


def share_of_changes(masks: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    changed = sum(int((a != b).sum()) for a, b in zip(masks, others, strict=True))
    return changed / sum(mask.numel() for mask in masks)


def make_batch(
    cfg: Config, model: torch.nn.Module, shape: tuple[int, int] | None, batch_size: int, expressions: int
) -> dict[str, Any]:
    return dummy_batch(
        shape=shape or input_size(cfg),
        num_images=batch_size,
        expressions_per_image=expressions,
        vocab_size=vocabulary_size(model),
    )


def make_calls(
    model: torch.nn.Module, data: dict[str, Any], *, amp: bool = False, backend: str | None = None
) -> dict[str, Callable[[], Any]]:
    """Return functions that do "inference" on a batch (and return masks by image), and a "training" step.

    They do not set the model's mode.
    """
    where = next(model.parameters()).device
    forward = torch.compile(model, backend=backend) if backend else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def context() -> Any:
        return torch.autocast(where.type, torch.bfloat16) if amp else nullcontext()

    def infer() -> list[torch.Tensor]:
        with torch.no_grad(), context():
            results = forward(**model.data_preprocessor(data, False), mode="predict")
            return [result.final_masks() for result in results]  # restored on request

    def step() -> None:
        with context():
            losses = forward(**model.data_preprocessor(data, True), mode="loss")
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()

    return {"inference": infer, "training": step}
