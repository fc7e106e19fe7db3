"""mmengine's Runner with one way to load weights and a quiet screen."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import convert_sync_batchnorm, is_model_wrapper
from mmengine.runner import Runner

from refseg import large_models
from refseg.engine.hooks import ProgressBarHook
from refseg.engine.muon import MuonAdamW
from refseg.engine.screen import ScreenHandler, ScreenHook, show
from refseg.errors import CheckpointError, ConfigError, UsageError, UserError, config_errors
from refseg.lora import adapters_of, restore_adapters
from refseg.models.published import state_for
from refseg.weights import load_all, load_initial, origin_of, read_checkpoint, state_dict_of


class RefRunner(Runner):
    """mmengine's Runner (0.10.7), whose weights come from local files through `refseg.weights`.

    mmengine itself loads whatever fits, accepts a file in which nothing fits, and runs `meta["config"]` of a checkpoint
    as Python when it resumes. The screen shows what `refseg.engine.screen` prints; the log file has everything.
    """

    batch_line = ""  # set by `refseg.engine.run.train`

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        # mmengine's call of torch's DistributedDataParallel is deprecated.
        warnings.filterwarnings("ignore", category=FutureWarning, module="mmengine")
        logger = super().build_logger(*args, **kwargs)
        # Replace the handler that prints everything by one that prints a few lines.
        for number, handler in enumerate(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.handlers[number] = screen = ScreenHandler(sys.stdout)
                screen.setLevel(handler.level)
                screen.filters = handler.filters
        return logger

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().register_hooks(*args, **kwargs)
        if large_models.is_sharded(self.model):
            self.register_hook(self.gather_hook)
        if not any(isinstance(hook, ProgressBarHook) and hook.always for hook in self.hooks):
            self.register_hook(ScreenHook())

    def build_model(self, model: Any) -> Any:
        with config_errors("model"):
            return super().build_model(model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: Any) -> Any:
        """Wrap the model for several processes, unless nothing in it is trained, which torch's wrapper refuses."""
        if self.cfg.get("gradient_checkpointing"):
            large_models.recompute(model, self.cfg.gradient_checkpointing)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model.to(get_device())
        if not self.cfg.get("fsdp"):
            return super().wrap_model(model_wrapper_cfg, model)
        if not self.distributed:
            raise UsageError("fsdp=True needs several processes: bash tools/dist_train.sh CONFIG NUMBER")
        if adapters_of(model):
            raise ConfigError("fsdp=True cannot train LoRA's additions, which are small. Omit one of the two")
        model = model.to(get_device())
        if self.cfg.get("sync_bn"):
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        large_models.shard(model)
        self.gather_hook = large_models.GatherHook()
        return model

    def _init_model_weights(self) -> None:
        """Initialize and synchronize the weights, unless the model is sharded, which has happened before."""
        if not large_models.is_sharded(self.model):
            super()._init_model_weights()

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        with config_errors("optim_wrapper"):
            built = super().build_optim_wrapper(optim_wrapper)
        if isinstance(getattr(built, "optimizer", None), MuonAdamW) and large_models.is_sharded(self.model):
            raise ConfigError("fsdp=True cannot train with MuonAdamW, which needs whole matrices. Use AdamW")
        return built

    def dump_config(self) -> None:
        """Write nothing: `build_runner` writes the config as it was before this run changed it."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint in the first process. All processes call this."""
        if large_models.is_sharded(self.model):
            self.gather_hook.gather(self.model, self.optim_wrapper.optimizer)
        super().save_checkpoint(*args, **kwargs)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the weights of a checkpoint, or all of it to resume, and return its content."""
        content = read_checkpoint(filename)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        state = state_dict_of(content, filename) if self._resume else state_for(model, content, filename)
        checkpoint = content | {"state_dict": state}
        meta = checkpoint.get("meta")

        # To resume, it must have the state of a training. Its config, which mmengine would run, is removed.
        if self._resume:
            position = [meta.get(key) for key in ("epoch", "iter")] if isinstance(meta, dict) else [None]
            known = all(isinstance(count, int) and count >= 0 for count in position)
            lacks = [] if known else ["meta.epoch and meta.iter"]
            lacks += [key for key in ("message_hub", "optimizer") if not isinstance(checkpoint.get(key), dict)]
            if lacks:
                raise CheckpointError(
                    f"--resume: {filename} holds weights, but not the state of a training (it lacks "
                    f"{', '.join(lacks)}). To start from these weights, set load_from to it"
                )
            meta.pop("config", None)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)

        # Resuming needs all tensors; a new training starts from those that fit.
        if self._resume:
            load_all(model, checkpoint["state_dict"], filename, meta)
            if large_models.is_sharded(model):
                large_models.scatter_optimizer_state(checkpoint, self.optim_wrapper.optimizer)
            restore_adapters(model, checkpoint.get("adapters", {}), filename)
            self.logger.info(f"resuming from {filename}")
        else:
            partial = bool(self.cfg.get("load_from_partial"))
            report = load_initial(model, checkpoint["state_dict"], filename, partial=partial)
            origin = origin_of(meta)
            show(f"load_from {filename}{f' ({origin})' if origin else ''}: {report}")
        self._has_loaded = True
        return checkpoint

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue from a checkpoint: weights, optimizer, schedule, and position in the data."""
        try:
            super().resume(filename, *args, **kwargs)
        except (UserError, torch.OutOfMemoryError):
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(
                f"--resume: {filename} does not continue this training ({reason}). Use the config of the run that "
                "wrote it. To take its weights alone, set load_from to it"
            ) from error
