"""The training loop: epochs or iterations, resumable at any step without reading data twice."""

from __future__ import annotations

import math
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from refseg.registry import LOOPS


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop that can end after `max_iters` and start in the middle of an epoch.

    Exactly one of `max_epochs` and `max_iters` is given. The sampler skips what was already trained (no decoding), and
    a validation that was due when the run was killed is made up for. Validation runs after every `val_interval` epochs,
    and after every `val_interval_iters` iterations where that is given.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        val_begin: int = 1,
        val_interval: int = 1,
        val_interval_iters: int | None = None,
    ) -> None:
        if (max_epochs is None) == (max_iters is None):
            raise ValueError("train_cfg needs either max_epochs or max_iters (and not both)")
        super().__init__(runner, dataloader, max_epochs=max_epochs or 1, val_begin=val_begin, val_interval=val_interval)
        self.val_interval_iters = val_interval_iters
        if len(self.dataloader) == 0:
            raise ValueError("the training data loader is empty: fewer samples than one batch with drop_last?")
        if max_iters is not None:
            self._max_iters = int(max_iters)
            self._max_epochs = math.ceil(self._max_iters / len(self.dataloader))

    def run(self) -> Any:
        runner = self.runner
        runner.call_hook("before_train")
        epoch_length = len(self.dataloader)
        if self._iter:  # resumed; a checkpoint of the epoch's end already counts that epoch
            self._epoch = self._iter // epoch_length
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.run_epoch(start=self._iter % epoch_length)
        runner.call_hook("after_train")
        return runner.model

    def run_epoch(self, start: int = 0) -> None:
        runner = self.runner
        sampler = self.dataloader.sampler
        sampler.set_position(seed=runner.seed, epoch=self._epoch, skip=start * self.dataloader.batch_size)
        runner.call_hook("before_train_epoch")
        for index, data_batch in enumerate(self.dataloader, start=start):
            runner.model.train()
            self.run_iter(index, data_batch)
            if self.stop_training or self._iter >= self._max_iters:
                break
            if index + 1 < len(self.dataloader):
                self._validate_if_due()
        sampler.set_position(seed=runner.seed, epoch=self._epoch, skip=0)
        runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._validate_if_due()

    def _validate_if_due(self) -> None:
        epoch_ended = self._iter % len(self.dataloader) == 0
        last = self._iter >= self._max_iters
        by_epoch = (
            (epoch_ended or last) and self._epoch >= self.val_begin and (self._epoch % self.val_interval == 0 or last)
        )
        by_iter = self.val_interval_iters is not None and self._iter % self.val_interval_iters == 0
        if self.runner.val_loop is not None and (by_epoch or by_iter):
            self.runner.val_loop.run()
