"""Handling of losses that are not finite. The step is skipped on every rank, counted, and reported.

After a given number in a row the run stops. Such a gradient never reaches the weights.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from refseg.errors import ConfigError, NonFiniteLossError
from refseg.large_models import clip_gradients
from refseg.registry import HOOKS, OPTIM_WRAPPERS


def finite_everywhere(loss: Tensor) -> bool:
    """Return whether the loss is finite on all ranks; every rank gets the same answer."""
    finite = torch.isfinite(loss.detach()).all().to(torch.uint8)
    all_reduce(finite, "min")  # does nothing in a single process
    return bool(finite.item())


class _Guard:
    """A mixin for an OptimWrapper that skips updates of non-finite losses."""

    skipped_in_a_row = 0
    skipped_total = 0
    _dropped = False  # whether a loss of this step, which may accumulate several, was not finite
    _inner_count: int  # of OptimWrapper

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        if finite_everywhere(loss):
            self.skipped_in_a_row = 0
            if not self._dropped:
                super().update_params(loss, step_kwargs, zero_kwargs)  # type: ignore[misc]
                return
        else:
            self.skipped_in_a_row += 1
            self.skipped_total += 1
            self._dropped = True
        # With accumulation, the other micro-batches of this step are dropped too: their scale counts this one.
        self._inner_count += 1
        if self.should_update():  # type: ignore[attr-defined]
            self.zero_grad(**(zero_kwargs or {}))  # type: ignore[attr-defined]
            self._dropped = False

    def _clip_grad(self) -> None:
        """Clip as mmengine does, or, if the model is sharded, over all processes."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]  # type: ignore[attr-defined]
        sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters)
        if not sharded or self.clip_func is not clip_grad_norm_:  # type: ignore[attr-defined]
            super()._clip_grad()  # type: ignore[misc]
            return
        settings = dict(self.clip_grad_kwargs)  # type: ignore[attr-defined]
        if settings.pop("norm_type", 2) != 2:
            raise ConfigError("fsdp=True clips the 2-norm of the gradient. Remove clip_grad.norm_type")
        norm = clip_gradients(parameters, settings["max_norm"])
        self.message_hub.update_scalar(f"train/{self.grad_name}", float(norm))  # type: ignore[attr-defined]


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(_Guard, OptimWrapper):
    """mmengine's OptimWrapper that skips non-finite losses."""


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(_Guard, AmpOptimWrapper):
    """mmengine's AmpOptimWrapper that skips non-finite losses."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Report each skipped batch, and stop the run after `max_in_a_row` of them (None: never stop, only count)."""

    priority = "NORMAL"

    def __init__(self, max_in_a_row: int | None = 5) -> None:
        if max_in_a_row is not None and max_in_a_row < 1:
            raise ConfigError("NonFiniteLossHook.max_in_a_row must be at least 1, or None to never stop")
        self.max_in_a_row = max_in_a_row
        self.seen = 0

    def before_train(self, runner: Any) -> None:
        if not isinstance(runner.optim_wrapper, _Guard):
            raise ConfigError(
                "NonFiniteLossHook needs optim_wrapper.type 'GuardedOptimWrapper' or 'GuardedAmpOptimWrapper', "
                f"not {type(runner.optim_wrapper).__name__}"
            )

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        wrapper = runner.optim_wrapper
        runner.message_hub.update_info("skipped_steps", wrapper.skipped_total)
        if wrapper.skipped_total == self.seen:
            return
        self.seen = wrapper.skipped_total
        report = describe_batch(data_batch, outputs)
        message = (
            f"rank {runner.rank}, iteration {runner.iter + 1}: a loss is not finite; step skipped "
            f"({wrapper.skipped_in_a_row} in a row, {wrapper.skipped_total} in all).\n{report}"
        )
        print_log(message, logger="current", level=logging.WARNING)
        if self.max_in_a_row is not None and wrapper.skipped_in_a_row >= self.max_in_a_row:
            raise NonFiniteLossError(
                f"{wrapper.skipped_in_a_row} non-finite losses in a row: stopping. They did not change the weights, "
                f"and the last checkpoint is good. Last batch:\n{report}\nLower the learning rate, clip gradients, or "
                "train in fp32 or bf16. NonFiniteLossHook.max_in_a_row=None skips and counts instead."
            )


def describe_batch(data_batch: dict[str, Any], outputs: dict[str, Any]) -> str:
    """Return the losses by name, and the images and phrases of a batch, as text."""
    lines = ["losses: " + ", ".join(f"{name}={value.item():.4g}" for name, value in outputs.items())]
    for meta in data_batch["batch"].metas:
        phrases = zip(meta.expression_ids, meta.texts, strict=True)
        lines.append(f"  {meta.image_path}: " + "; ".join(f"{name}: {text!r}" for name, text in phrases))
    return "\n".join(lines)
