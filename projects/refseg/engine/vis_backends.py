"""Weights & Biases, which one config key enables and which can never stop or block a run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.visualization import BaseVisBackend

from refseg.registry import VISBACKENDS


@VISBACKENDS.register_module()
class OptionalWandbBackend(BaseVisBackend):
    """Log scalars, images, and the config to wandb. After the first failure it warns once and does nothing more.

    `wandb.enable=True` in a config adds it; the other keys of `wandb` are arguments of `wandb.init`. Without an API key
    in the environment or in netrc, it logs offline into `<save_dir>`, for `wandb sync`.
    """

    def __init__(self, save_dir: str, init_kwargs: dict | None = None, limit_s: float = 60.0) -> None:
        super().__init__(save_dir)
        self.init_kwargs = dict(init_kwargs or {})
        self.limit_s = limit_s
        self.run: Any = None
        self.failed = False

    def _init_env(self) -> None:
        """Start nothing yet: the first use does."""

    def _try(self, use_run: Callable[[], Any]) -> None:
        """Start the run if there is none, and use it, in at most `limit_s` seconds. After a failure, do nothing."""
        if self.failed:
            return
        errors: list[BaseException] = []

        def target() -> None:
            try:
                if self.run is None:
                    import wandb

                    os.makedirs(self._save_dir, exist_ok=True)
                    has_key = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
                    options = {"dir": self._save_dir, "mode": "online" if has_key else "offline", **self.init_kwargs}
                    self.run = wandb.init(**options)
                use_run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target, daemon=True)  # left alone if it hangs
        thread.start()
        thread.join(self.limit_s)
        if thread.is_alive():
            errors.append(TimeoutError(f"no answer within {self.limit_s:g} s"))
        for error in errors[:1]:
            self.failed = True
            remedy = " (`pip install 'refseg[log]'`)" if isinstance(error, ImportError) else ""
            print_log(
                f"wandb is off for this run: {type(error).__name__}: {error}{remedy}. Training continues; "
                "TensorBoard and the log have everything.",
                logger="current",
                level=logging.WARNING,
            )

    @property
    def experiment(self) -> Any:
        return self.run

    def add_config(self, config: Config, **kwargs: Any) -> None:
        self._try(lambda: self.run.config.update(config.to_dict(), allow_val_change=True))

    def add_image(self, name: str, image: Any, step: int = 0, **kwargs: Any) -> None:
        def log_image() -> None:
            import wandb

            self.run.log({name: wandb.Image(image), "step": step})

        self._try(log_image)

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        self._try(lambda: self.run.log({name: float(value), "step": step}))

    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any) -> None:
        self._try(lambda: self.run.log({"step": step, **scalar_dict}))

    def close(self) -> None:
        if self.run is not None:
            self._try(self.run.finish)
            self.run = None
