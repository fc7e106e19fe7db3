"""The training loop: epochs or iterations, resumable at any step without repeating data."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from refseg.errors import ConfigError, TrainingError
from refseg.registry import LOOPS

SIGCHLD = getattr(signal, "SIGCHLD", None)  # not on Windows
LOST_CONNECTION = (EOFError, ConnectionError)  # raised when a batch is fetched from a dead worker
HANGING_S = 900.0  # without a batch; far above an image that times out
REASONS = {"SIGKILL": ", probably because main memory ran out", "SIGBUS": ", probably for lack of shared memory"}


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop, which can also end after `max_iters` and start in the middle of an epoch.

    A resumed run skips the samples that were already used, without decoding them, and runs a validation that was due
    when the run was killed. If a data-loading worker dies (mostly out of memory), the training ends with an error that
    says so, or restarts the loader at the next batch, so the order of the data stays the same.

    A loader hangs if no batch comes for `train_dataloader.timeout` seconds, or HANGING_S if it has none. It is treated
    like a dead worker.

    Args:
        max_epochs: Length of the training in epochs. Exactly one of `max_epochs` and `max_iters` is needed.
        max_iters: Length of the training in iterations.
        val_begin: First epoch after which validation may run.
        val_interval: Number of epochs between validations.
        val_interval_iters: If given, validation also runs every so many iterations.
        max_worker_restarts: Maximum number of restarts of the training data loader.
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
        max_worker_restarts: int = 0,
    ) -> None:
        if (max_epochs is None) == (max_iters is None):
            raise ConfigError("train_cfg needs either max_epochs or max_iters. Set the other one to None")
        super().__init__(runner, dataloader, max_epochs=max_epochs or 1, val_begin=val_begin, val_interval=val_interval)
        if not isinstance(max_worker_restarts, int) or max_worker_restarts < 0:
            raise ConfigError(
                f"train_cfg.max_worker_restarts must be a whole number of at least 0, not {max_worker_restarts!r}"
            )
        self.val_interval_iters = val_interval_iters
        self.max_worker_restarts = max_worker_restarts
        self.worker_restarts = 0
        self._validated_at = -1  # the last step that was validated in this process
        if getattr(self.dataloader, "num_workers", 0) and not self.dataloader.timeout:
            self.dataloader.timeout = HANGING_S
        if len(self.dataloader) == 0:
            raise ConfigError("the training data loader is empty: fewer samples than one batch with drop_last?")
        if max_iters is not None:
            self._max_iters = int(max_iters)
            self._max_epochs = math.ceil(self._max_iters / len(self.dataloader))

    def run(self) -> Any:
        runner = self.runner
        runner.call_hook("before_train")
        epoch_length = len(self.dataloader)
        if self._iter:  # resumed; a checkpoint from the end of an epoch already counts that epoch
            at_end = self._iter >= self._max_iters  # which may be in the middle of an epoch
            self._epoch = math.ceil(self._iter / epoch_length) if at_end else self._iter // epoch_length
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.run_epoch(start=self._iter % epoch_length)
        runner.call_hook("after_train")
        return runner.model

    def run_epoch(self, start: int = 0) -> None:
        runner = self.runner
        runner.call_hook("before_train_epoch")
        for index, data_batch in self._batches(start):
            runner.model.train()
            self.run_iter(index, data_batch)
            if index + 1 < len(self.dataloader) and self._iter < self._max_iters:
                self._validate_if_due()
            if self.stop_training or self._iter >= self._max_iters:
                break
        self._start_loader_at(0)
        runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._validate_if_due()

    def _start_loader_at(self, index: int) -> None:
        """Let the next pass of the loader begin with this batch of the epoch."""
        skip = index * self.dataloader.batch_size
        self.dataloader.sampler.set_position(seed=self.runner.seed, epoch=self._epoch, skip=skip)

    def _batches(self, start: int) -> Iterator[tuple[int, Any]]:
        """Yield the batches of the epoch from number `start` on with their numbers, across restarts of the loader."""
        index = start
        while True:
            self._start_loader_at(index)
            batches: Any = getattr(self.dataloader, "_iterator", None)  # of persistent workers, after the first epoch
            try:
                batches = iter(self.dataloader)
                for batch in batches:
                    with hold_back_worker_deaths(batches):
                        yield index, batch
                    index += 1
                    if death := worker_death(batches):
                        break
                else:
                    return
            except Exception as error:
                death = worker_death(batches, error)
                if not death:
                    raise

            # A worker died: stop the others, so that the next pass starts new ones.
            if hasattr(batches, "_shutdown_workers"):
                with hold_back_worker_deaths(batches):
                    batches._shutdown_workers()
            self.dataloader._iterator = None  # where PyTorch keeps persistent workers
            if self.worker_restarts >= self.max_worker_restarts:
                after = f", after {self.worker_restarts} restarts of the data loader" if self.worker_restarts else ""
                raise TrainingError(
                    f"{death} (iteration {self._iter}{after}). Continue from the last checkpoint with --resume. If it "
                    "happens again, lower train_dataloader.num_workers, or let the data loader be restarted: "
                    f"train_cfg.max_worker_restarts={self.max_worker_restarts + 3}"
                )
            self.worker_restarts += 1
            print_log(
                f"{death} (iteration {self._iter}). Restarting the data loader where it was, with the same order of "
                f"data ({self.worker_restarts} of at most {self.max_worker_restarts} restarts)",
                "current",
                logging.WARNING,
            )

    def _validate_if_due(self) -> None:
        last = self._iter >= self._max_iters
        epoch_ended = last or self._iter % len(self.dataloader) == 0
        by_epoch = epoch_ended and self._epoch >= self.val_begin and (last or self._epoch % self.val_interval == 0)
        by_iter = self.val_interval_iters is not None and self._iter % self.val_interval_iters == 0
        if self.runner.val_loop is None or not (by_epoch or by_iter) or self._validated_at == self._iter:
            return
        self._validated_at = self._iter
        try:
            self.runner.val_loop.run()
        except Exception as error:
            if death := worker_death(None, error):
                raise TrainingError(
                    f"{death} (validation after iteration {self._iter}). Continue from the last checkpoint with "
                    "--resume, which repeats the validation. If it happens again, lower val_dataloader.num_workers"
                ) from None
            raise


def worker_death(batches: Any, error: Exception | None = None) -> str:
    """Describe how a worker of a data loader died, by the loader's iterator or the error; "" if none did."""
    workers = getattr(batches, "_workers", ())
    if isinstance(error, LOST_CONNECTION) and workers:
        wait([worker.sentinel for worker in workers], timeout=5)  # it may still be dying
    for worker in workers:
        if worker.exitcode:
            how = f"exit code {worker.exitcode}"
            if worker.exitcode < 0:
                name = signal.Signals(-worker.exitcode).name
                how = f"killed by {name}{REASONS.get(name, '')}"
            return f"a data-loading worker (pid {worker.pid}) died: {how}"
    if str(error).startswith("DataLoader timed out"):
        return f"the data-loading workers hang: {error}"
    if str(error).startswith("DataLoader worker (pid"):
        return f"a data-loading worker died: {str(error).strip()}"
    return f"a data-loading worker died ({type(error).__name__})" if isinstance(error, LOST_CONNECTION) else ""


@contextmanager
def hold_back_worker_deaths(batches: Any) -> Iterator[None]:
    """Hold back errors about dead workers.

    PyTorch raises them in the main thread as soon as a worker dies. In the middle of a step, this would leave some
    weights updated and others not.
    """
    has_workers = bool(getattr(batches, "_workers", ()))
    if SIGCHLD is None or not has_workers or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(SIGCHLD, handler)
