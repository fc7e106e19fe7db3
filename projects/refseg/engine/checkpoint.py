"""Checkpoints that survive a kill at any moment.

A file is written under a temporary name, synced, and renamed, so a file that ends in `.pth` is always complete. An old
checkpoint is removed only after the new one has been written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from refseg.datasets.tokenizers import save_tokenizer_files
from refseg.errors import ConfigError
from refseg.files import write_atomically
from refseg.lora import adapters_of
from refseg.registry import HOOKS

PROCESSOR = "processor"  # folder of a zero-shot model's processor, beside the weights
_VALIDATED = "steps_validated"  # key in the message hub, which checkpoints contain; a resumed run may repeat a step
_STEP = re.compile(r"(epoch|iter)_(\d+)\.pth")


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


register_backend("refseg_atomic", AtomicLocalBackend, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook (0.10.7) with atomic files, which removes old files after the write, not before.

    It also copies the files of the training's tokenizers into the folder of the weights. `save_best='auto'` takes the
    metric that the evaluator names in `save_best`, so the config file of the data set chooses it. By default it is the
    first metric, as in mmengine.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, backend_args=backend_args or dict(backend="refseg_atomic"), **kwargs)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        """Delay the removal of files until the block ends. Remove nothing if it fails."""
        backend = self.file_backend
        remove = backend.remove  # in a nested block, that of the outer block, which removes later
        paths: list[str] = []
        backend.remove = paths.append
        try:
            yield
        finally:
            backend.remove = remove
        # A new best checkpoint of the same epoch has the name of the old one, and stays.
        named = {getattr(self, "last_ckpt", None), getattr(self, "best_ckpt_path", None)}
        named |= set(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in paths:
            if path not in named:
                remove(path)

    def before_train(self, runner: Any) -> None:
        """Resolve and check the metric of the best checkpoint, and remove the temporary files of killed writes."""
        if self.save_best and runner.val_loop is not None:
            metrics = runner.val_evaluator.metrics
            if self.save_best == ["auto"]:
                chosen = [metric.save_best for metric in metrics if getattr(metric, "save_best", None)]
                self._init_rule(self.rules, chosen[:1] or self.save_best)
            known = [name for metric in metrics for name in getattr(metric, "metric_names", ())]
            unknown = sorted(set(self.key_indicators) - {"auto", *known})
            if known and unknown:
                raise ConfigError(
                    f"save_best: validation has no metric {unknown[0]!r}. It has: {', '.join(known)}. Set "
                    "val_evaluator.save_best to one of them, or add its protocol to val_evaluator.protocols"
                )
        super().before_train(runner)
        if runner.rank == 0:
            save_tokenizer_files(runner.cfg.train_dataloader, self.out_dir)
            model = model_of(runner)
            if hasattr(model, "save_processor"):
                model.save_processor(Path(self.out_dir, PROCESSOR))
            for leftover in Path(self.out_dir).glob(".*.pth.*.part"):
                leftover.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add what a training with LoRA needs to continue, beside the merged weights."""
        if "optimizer" in checkpoint and (adapters := adapters_of(model_of(runner))):
            checkpoint["adapters"] = {name: tensor.cpu() for name, tensor in adapters.items()}

    def before_val_epoch(self, runner: Any) -> None:
        """Give all ranks the buffers of rank 0, which are the ones saved. BatchNorm's statistics differ by rank."""
        for buffer in runner.model.buffers():
            broadcast(buffer)  # does nothing in a single process

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        steps = {*runner.message_hub.get_info(_VALIDATED, []), runner.iter}
        runner.message_hub.update_info(_VALIDATED, sorted(steps))
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)

    def after_train(self, runner: Any) -> None:
        """Log the number of validations from which the best checkpoint was chosen."""
        super().after_train(runner)
        best = best_checkpoint(self.out_dir) if self.save_best else None
        if best is not None:
            runner.logger.info(f"{best.name}: {chosen_from(len(runner.message_hub.get_info(_VALIDATED, [])))}")


def model_of(runner: Any) -> Any:
    """Return the model, without the wrapper of distributed training."""
    return runner.model.module if hasattr(runner.model, "module") else runner.model


def chosen_from(validations: int) -> str:
    """Describe what "best" means after a number of validations."""
    if validations == 1:
        return "the weights at the only validation, not the best of several (train_cfg.val_interval sets how many)"
    return f"the best of {validations} validations"


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest `epoch_N.pth` or `iter_N.pth` of a work directory.

    mmengine's `last_checkpoint` file is not used, because a kill can leave it empty. A `.pth` file is always complete.
    """
    return _newest(path for path in Path(work_dir).glob("*.pth") if _STEP.fullmatch(path.name))


def best_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest file that `save_best` wrote into a work directory."""
    return _newest(Path(work_dir).glob("best_*.pth"))


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
