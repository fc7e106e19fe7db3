"""The screen of a run, which shows a few lines.

The log file has everything, including mmengine's dumps of environment, config, hooks, and parameter groups.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MMLogger
from tqdm import tqdm

# Warnings of mmengine that users cannot act on. The model line tells how many parameters are trained.
_NOISE = (
    "will be deprecated",
    "is the alias of",
    "`save_param_scheduler` is True",
    "prefix is not set",
    "is skipped since its",
)


def show(text: str) -> None:
    """Print a line on the screen of rank 0, and write it to the log file."""
    MMLogger.get_current_instance().info(text, extra={"screen": True})


class ScreenHandler(logging.StreamHandler):
    """Handler for records of `show` and for warnings. It writes above progress bars instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            if any(words in text for words in _NOISE):
                return
            text = f"{record.levelname.lower()}: {text}"
        elif not getattr(record, "screen", False):
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


class ScreenHook(Hook):
    """Data, model, and batch at the start; then losses and samples/s at LoggerHook's interval; then tables of scores.

    `RefRunner` adds it to every run.
    """

    priority = "VERY_LOW"  # after the hooks that measure time and choose the best checkpoint

    def __init__(self) -> None:
        self.best: dict[str, float] = {}  # of the validations so far
        self.started = 0.0

    def before_train(self, runner: Any) -> None:
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 50)
        loaders = {"train": runner.train_dataloader}
        if runner.val_loop is not None:
            loaders["val"] = runner.val_dataloader
        for name, loader in loaders.items():
            show(f"{name:6} {describe_data(loader.dataset)}")
        show(f"model  {describe_model(runner.model)}")
        optimizer = runner.optim_wrapper.optimizer
        show(f"batch  {runner.batch_line.removeprefix('batch: ')}")
        show(f"rate   {optimizer.param_groups[0]['lr']:.3g}, {type(optimizer).__name__}, {runner.max_iters:,} steps")
        show(f"log    {runner.log_dir}")

    def before_test(self, runner: Any) -> None:
        show(f"test   {describe_data(runner.test_dataloader.dataset)}")
        show(f"model  {describe_model(runner.model)}")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        last = runner.iter + 1 == runner.max_iters
        if not (self.every_n_train_iters(runner, self.interval) or last) or runner.rank != 0:
            return
        scalars = {
            name.removeprefix("train/"): history.mean(self.interval)
            for name, history in runner.message_hub.log_scalars.items()
            if name.startswith("train/") and history.data[0].size
        }
        epoch_length = len(runner.train_dataloader)
        parts = [f"epoch {runner.iter // epoch_length + 1}", f"step {runner.iter + 1}/{runner.max_iters}"]
        parts += [f"loss {scalars['loss']:.4f}"] if "loss" in scalars else []
        parts += [
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss_")
        ]
        if scalars.get("time"):
            samples = runner.train_dataloader.batch_size * get_world_size()
            parts.append(f"{samples / scalars['time']:.1f} samples/s")
            seconds = int(scalars["time"] * (runner.max_iters - runner.iter - 1))
            parts.append(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left")
        show("  ".join(parts))

    def before_val_epoch(self, runner: Any) -> None:
        self.started = time.perf_counter()

    def before_test_epoch(self, runner: Any) -> None:
        self.started = time.perf_counter()

    def speed(self, loader: Any) -> str:
        """Return the time per image since the start of the validation or test, with loading and scoring."""
        images = math.ceil(len(loader.dataset) / get_world_size())
        return f"{(time.perf_counter() - self.started) / max(images, 1):.3f} s per image"

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        title = f"validation after step {runner.iter}"
        show("\n".join(score_table(title, metrics or {}, self.best)))
        show(self.speed(runner.val_dataloader))
        self.best |= {name: max(value, self.best.get(name, value)) for name, value in (metrics or {}).items()}
        best = runner.message_hub.runtime_info.get("best_ckpt")
        if best is not None and runner.message_hub.runtime_info.get("best_score") is not None:
            show(f"best so far: {best}")

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        show("\n".join(score_table("test", metrics or {})))
        show(self.speed(runner.test_dataloader))


def describe_data(dataset: Any) -> str:
    """Describe a data set, or each part of a mixture: "refshapes.jsonl train: 24 images, 144 phrases"."""
    if hasattr(dataset, "datasets"):
        return "; ".join(describe_data(part) for part in dataset.datasets)
    if not hasattr(dataset, "items"):
        return f"{len(dataset):,} samples"
    annotations, split = dataset.metainfo["annotations"], dataset.metainfo["split"]
    split = ",".join(split) if isinstance(split, list) else split or "all splits"
    file = annotations.get("refs") or annotations.get("file") or ""
    images = len(set(dataset.items.image.tolist()))
    return f"{file} {split}: {images:,} images, {len(dataset.items.pool):,} phrases"


def describe_model(model: Any) -> str:
    """Describe a model: its class, its number of parameters, and how many of them are trained."""
    model = getattr(model, "module", model)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{type(model).__name__}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained"


def score_table(title: str, metrics: Mapping[str, float], earlier: Mapping[str, float] | None = None) -> Iterator[str]:
    """Yield the lines of a table: one row per metric, one column per protocol ("protocol/metric": value).

    Args:
        earlier: The best values so far. A star marks values that are at least as high (except error rates).
    """
    scores = {name: value for name, value in metrics.items() if name not in ("time", "data_time")}
    protocols = list(dict.fromkeys(name.rpartition("/")[0] for name in scores))
    rows = list(dict.fromkeys(name.rpartition("/")[2] for name in scores))
    first = max(len(text) for text in [title, *rows])
    widths = {protocol: max(len(protocol), 8) for protocol in protocols}
    yield f"{title:{first}}" + "".join(f"  {protocol:>{widths[protocol]}}" for protocol in protocols)
    for row in rows:
        line = f"{row:{first}}"
        for protocol in protocols:
            name = f"{protocol}/{row}" if protocol else row
            text = "-" if name not in scores else f"{scores[name]:.2f}"
            is_best = scores.get(name, -math.inf) >= (earlier or {}).get(name, math.inf) and not row.endswith("FPR")
            star = "*" if is_best else " "
            line += f" {star}{text:>{widths[protocol]}}"
        yield line
