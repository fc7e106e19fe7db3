"""Small hooks: a random seed per step, a report on texts that the model cannot read in full, progress bars."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from tqdm import tqdm

from refseg.datasets.tokenizers import UnknownWords
from refseg.registry import HOOKS


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return a 32-bit seed that depends on all three."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed dropout, point sampling, and other randomness from (seed, iteration, rank) before every step.

    No random state is carried from step to step, so a resumed run has the losses of an uninterrupted one.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed = step_seed(runner.seed, runner.iter, runner.rank)
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

    def _count(self, data_batch: dict) -> None:
        batch = data_batch["batch"]
        self.truncated += batch.tokens.num_truncated
        self.expressions += batch.num_expressions
        for meta in batch.metas:
            self.unknown.count(meta.unknown_words)

    def _report(self, what: str) -> None:
        if self.truncated:
            print_log(
                f"{what}: {self.truncated} of {self.expressions} expressions were cut to the tokenizer's max_words "
                "(this rank). Raise max_words of LoadText in the pipelines if that is too many.",
                logger="current",
                level=logging.WARNING,
            )
        if self.unknown.phrases and what not in self._unknown_reported:
            self._unknown_reported.add(what)
            print_log(
                f"{what}: {self.unknown.phrases} of {self.expressions} expressions have words that the model does not "
                f"know (this rank): {self.unknown.listed()}. They count like all others.",
                logger="current",
                level=logging.WARNING,
            )
        self._reset()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._count(data_batch)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._count(data_batch)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._count(data_batch)

    def before_val_epoch(self, runner: Any) -> None:
        self._report("training so far")

    def after_train_epoch(self, runner: Any) -> None:
        self._report("training")

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._report("validation")

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._report("test")


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

    def _start(self, runner: Any, what: str, total: int, initial: int = 0) -> None:
        terminal = sys.stderr.isatty()
        if runner.rank == 0 and (terminal or (self.always and not self.bars)):
            pace = {} if terminal else {"mininterval": 10.0, "ascii": True, "ncols": 80}
            self.bars[what] = tqdm(total=total, initial=initial, desc=what, unit="it", leave=what == "train", **pace)

    def _advance(self, what: str, text: str = "") -> None:
        if what in self.bars:
            if text:
                self.bars[what].set_postfix_str(text, refresh=False)
            self.bars[what].update()

    def _stop(self, what: str) -> None:
        if what in self.bars:
            self.bars.pop(what).close()

    def before_train(self, runner: Any) -> None:
        self._start(runner, "train", runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._advance("train", f"loss {outputs['loss'].item():.3f}" if "train" in self.bars else "")

    def after_train(self, runner: Any) -> None:
        self._stop("train")

    def before_val_epoch(self, runner: Any) -> None:
        self._start(runner, "val", len(runner.val_dataloader))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._advance("val")

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._stop("val")

    def before_test_epoch(self, runner: Any) -> None:
        self._start(runner, "test", len(runner.test_dataloader))

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._advance("test")

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._stop("test")
