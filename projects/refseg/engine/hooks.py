"""Small hooks: a random seed per step, texts that the model cannot read in full, a time limit, progress bars."""

from __future__ import annotations

import logging
import random
import sys
import time
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.logging import print_log
from tqdm import tqdm

from refseg.datasets.tokenizers import UnknownWords
from refseg.registry import HOOKS


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed dropout, point sampling, and other randomness from (seed, iteration, rank) before every step.

    No random state is carried from step to step, so a resumed run has the losses of an uninterrupted one.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed = int(np.random.SeedSequence([runner.seed, runner.iter, runner.rank]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class TextTruncationHook(Hook):
    """Count expressions that the model cannot read in full, and warn about them.

    Expressions longer than the tokenizer's limit are reported once per epoch or evaluation. Expressions with words
    unknown to the tokenizer are reported after the first epoch and the first evaluation, with these words. Both are
    trained on and scored like all others.
    """

    priority = "LOW"

    def __init__(self) -> None:
        self._unknown_reported: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self.truncated = 0
        self.expressions = 0
        self.unknown = UnknownWords()

    def _report(self, phase: str) -> None:
        lines = []
        if self.truncated:
            lines.append(
                f"{phase}: {self.truncated} of {self.expressions} expressions were cut to the tokenizer's max_words "
                "(this rank). Raise max_words of LoadText in the pipelines if that is too many."
            )
        if self.unknown.phrases and phase not in self._unknown_reported:
            self._unknown_reported.add(phase)
            lines.append(
                f"{phase}: {self.unknown.phrases} of {self.expressions} expressions have words that the model does not "
                f"know (this rank): {self.unknown.listed()}. They count like all others."
            )
        for line in lines:
            print_log(line, logger="current", level=logging.WARNING)
        self._reset()

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        batch = data_batch["batch"]
        self.truncated += batch.tokens.num_truncated
        self.expressions += batch.num_expressions
        for meta in batch.metas:
            self.unknown.count(meta.unknown_words)

    def before_val_epoch(self, runner: Any) -> None:
        self._report("training so far")

    def _after_epoch(self, runner: Any, mode: str = "train") -> None:
        self._report({"train": "training", "val": "validation"}.get(mode, mode))


@HOOKS.register_module()
class TimeLimitHook(Hook):
    """End a training at the first validation after a limit, so that its last checkpoint has scores.

    Time before an interruption counts too, up to the checkpoint that the run continued from.

    Args:
        seconds: The limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_train(self, runner: Any) -> None:
        before = runner.message_hub.runtime_info.get("trained_seconds", 0.0)
        self._start = time.monotonic() - before

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        runner.message_hub.update_info("trained_seconds", time.monotonic() - self._start)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        over = [time.monotonic() - self._start >= self.seconds]
        broadcast_object_list(over)  # the first process decides, as clocks differ
        if over[0] and runner.iter < runner.max_iters:
            print_log(f"the time limit of {self.seconds:.0f} s is reached", "current")
            runner.train_loop.stop_training = True


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """One progress bar for the training and one for each evaluation, on rank 0, if stderr is a terminal.

    Args:
        always: Show nothing but the bar: no lines of losses and no tables of scores. If stderr is no terminal, the bar
            is printed every 10 seconds.
    """

    priority = "VERY_LOW"

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.bars: dict[str, tqdm] = {}

    def _start(self, runner: Any, mode: str, total: int, initial: int = 0) -> None:
        terminal = sys.stderr.isatty()
        if runner.rank == 0 and (terminal or (self.always and not self.bars)):
            pace = {} if terminal else {"mininterval": 10.0, "ascii": True, "ncols": 80}
            self.bars[mode] = tqdm(total=total, initial=initial, desc=mode, unit="it", leave=mode == "train", **pace)

    def before_train(self, runner: Any) -> None:
        self._start(runner, "train", runner.max_iters, runner.iter)

    def before_val_epoch(self, runner: Any) -> None:
        self._start(runner, "val", len(runner.val_dataloader))

    def before_test_epoch(self, runner: Any) -> None:
        self._start(runner, "test", len(runner.test_dataloader))

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        if mode in self.bars:
            if mode == "train":
                self.bars[mode].set_postfix_str(f"loss {outputs['loss'].item():.3f}", refresh=False)
            self.bars[mode].update()

    def _after_epoch(self, runner: Any, mode: str = "train") -> None:
        if mode != "train" and mode in self.bars:  # one bar covers all epochs of a training
            self.bars.pop(mode).close()

    def after_train(self, runner: Any) -> None:
        if "train" in self.bars:
            self.bars.pop("train").close()
