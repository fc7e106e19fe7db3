"""Workarounds for other libraries, one function each. The docstring says which versions need it and why.

Each has a test in `tests/test_compat.py` that fails if the workaround stops working, or if the library no longer needs
it. Then delete the workaround together with its test.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from refseg.errors import ConfigError, UsageError

_EXT = "mmcv._ext"


class CompiledOpMissing(ImportError):
    """Raised by a call of an operator that only a compiled mmcv has."""


class _ExtStandIn(types.ModuleType):
    """A replacement for `mmcv._ext`, in which every public name is a function that raises an error with the reason."""

    reason = "this mmcv has no compiled extension"

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise CompiledOpMissing(
                f"mmcv's compiled operator '{name}' was called, but {self.reason}. refseg's models never need it. For "
                "other models, build mmcv from source for this PyTorch (`pip install --no-binary mmcv "
                "'mmcv>=2.0.0rc4,<2.2'`, needs a compiler), then check with `refseg doctor`."
            )

        return missing


class _ExtFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder and loader of `mmcv._ext`: the real extension if it works, or else the stand-in."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _EXT:
            return None
        self.real = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.real.origin if self.real else None)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        if self.real is None or self.real.loader is None:
            return _ExtStandIn(_EXT)
        try:
            import torch  # noqa: F401  the extension links against libtorch, which must be loaded first

            return self.real.loader.create_module(self.real) or types.ModuleType(_EXT)
        except ImportError as error:  # compiled for another PyTorch
            module = _ExtStandIn(_EXT)
            module.reason = f"this mmcv's compiled extension does not load ({error})"
            return module

    def exec_module(self, module: types.ModuleType) -> None:
        if not isinstance(module, _ExtStandIn):
            self.real.loader.exec_module(module)


def install_mmcv_ext_stand_in() -> None:
    """Make `mmcv.ops`, `mmdet.models`, and `mmseg.models` importable without a compiled mmcv.

    With mmcv-lite 2.x, or an mmcv compiled for another PyTorch, they fail to import `mmcv._ext`, and mmcv has no binary
    wheel for current PyTorch. An import hook provides that module. It uses a compiled extension that works. Otherwise a
    call of a compiled operator raises `CompiledOpMissing`. This function itself imports nothing.
    """
    if _EXT not in sys.modules and not any(isinstance(finder, _ExtFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtFinder())


def mmcv_ext_state() -> tuple[bool, str]:
    """Return whether mmcv's compiled extension works, and a description of it."""
    install_mmcv_ext_stand_in()
    ext = importlib.import_module(_EXT)
    if isinstance(ext, _ExtStandIn):
        return False, ext.reason
    return True, f"compiled extension {getattr(ext, '__file__', '')}"


def _history_method(owner: Any, name: str) -> Any:
    """Replace `getattr` inside a checkpoint: return a statistic of mmengine's HistoryBuffer, and nothing else."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is HistoryBuffer and name in ("min", "max", "mean", "current"):
        return getattr(HistoryBuffer, name)
    raise ValueError(f"refused to read attribute {name!r} of {owner!r} while loading a checkpoint")


def allow_mmengine_checkpoints() -> None:
    """Let `torch.load` with `weights_only=True` read mmengine's checkpoints and ones with command-line arguments.

    mmengine 0.10.7 resumes with a bare `torch.load`, which means `weights_only=True` since PyTorch 2.6. The parts of
    its logging history (a plain container, its four methods, numpy arrays, and numbers) are allowed by name. So is
    `argparse.Namespace`, a plain container that BEiT-3's and others' training scripts save. Everything else is still
    refused.
    """
    from argparse import Namespace

    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    try:
        from numpy._core.multiarray import _reconstruct, scalar
    except ImportError:  # numpy 1.x
        from numpy.core.multiarray import _reconstruct, scalar
    dtypes = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "uint8", "bool")}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            Namespace,
            (_history_method, "builtins.getattr"),
            # numpy 1.x and 2.x name the same functions differently inside the file
            *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
            *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
            np.ndarray,
            np.dtype,
            *dtypes,
        ]
    )


def init_cpu_dist(launcher: str, timeout_s: float | None = None) -> bool:
    """Initialize gloo from the launcher's environment if there is no GPU, and return whether this was done.

    In mmengine 0.10.7, every launcher calls `torch.cuda.set_device`, which fails without a GPU. It skips that if the
    processes are already initialized.

    Args:
        launcher: "none", "pytorch", "slurm", or "mpi".
        timeout_s: How long processes wait for each other; by default PyTorch's 30 minutes.
    """
    import datetime

    import torch
    import torch.distributed as dist

    if launcher == "none" or torch.cuda.is_available() or dist.is_initialized():
        return False
    if launcher == "slurm":
        if "MASTER_ADDR" not in os.environ:
            nodes = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
            os.environ["MASTER_ADDR"] = subprocess.check_output(nodes, text=True).split()[0]
        os.environ.setdefault("MASTER_PORT", "29500")
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"--launcher {launcher}: the environment lacks {', '.join(missing)}. Start with `tools/dist_train.sh` "
            "or `torchrun`, or use --launcher none for a single process."
        )
    timeout = None if timeout_s is None else datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", timeout=timeout)
    return True


def exit_launched(code: int) -> NoReturn:
    """End a process that a launcher started without running destructors; end any other process as usual.

    In PyTorch 2.14, gloo's threads sometimes abort an interpreter that shuts down after all work is done ("terminate
    called without an active exception"). Exit handlers run and output is flushed before.
    """
    if os.environ.get("WORLD_SIZE") is None and os.environ.get("SLURM_NTASKS") is None:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wrap_on_cpu(cfg: Any) -> None:
    """Name the DistributedDataParallel wrapper in the config, without a device, if there is no GPU.

    mmengine 0.10.7 passes the GPU of the rank to its default wrapper even without one, which torch refuses.
    Synchronized BatchNorm, which PyTorch has for GPUs only, is turned off.
    """
    import torch

    if torch.cuda.is_available():
        return
    if cfg.get("sync_bn"):
        cfg.sync_bn = None
    if cfg.get("launcher", "none") != "none" and not cfg.get("model_wrapper_cfg"):
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get("find_unused_parameters", False),
        )


def keep_weights(module: Any) -> Any:
    """Mark a module as initialized, so that mmengine keeps its weights, and return it.

    In mmengine 0.10.7, `Runner.train` calls `init_weights` of a BaseModule's direct children. Models of timm and
    transformers have a method of that name that draws random weights, so pretrained ones would be lost silently.
    """
    module.is_init = True
    return module


def dict_action() -> type:
    """Return an argparse action for KEY=VALUE options that keeps spaces in values.

    DictAction of mmengine 0.10.7 deletes all spaces, also in paths, and ends with a traceback if a value has no key.
    """
    import argparse

    from mmengine.config import DictAction

    class KeepBlanks(DictAction):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            for value in [values] if isinstance(values, str) else values:
                if "=" not in value or value.startswith("="):
                    raise argparse.ArgumentError(self, f"{value!r} is not of the form KEY=VALUE, such as model.x=1")
            super().__call__(parser, namespace, values, option_string)

        @staticmethod
        def _parse_iterable(val: str) -> Any:
            single = val.strip("'\"")
            if "," in single or single[:1] in ("(", "["):
                return DictAction._parse_iterable(val)
            return DictAction._parse_int_float_bool(single)

    return KeepBlanks


def find_shipped_bases() -> None:
    """Let configs name a shipped config as `_base_ = 'refseg::_base_/default_runtime.py'`, in a clone or a wheel.

    In mmengine 0.10.7, `_base_ = 'PACKAGE::FILE'` works only for a fixed list of packages that pip installed.
    """
    from mmengine.config import Config

    from refseg.paths import configs_dir, resolve_config

    search = Config._get_cfg_path
    if getattr(search, "knows_refseg", False):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, rest = cfg_path.partition("::")
        if package == "refseg" and rest:
            base = str(configs_dir() / rest), None
            if not os.path.isfile(base[0]):  # without its folder, or under a name that was changed
                with contextlib.suppress(FileNotFoundError):
                    base = str(resolve_config(rest)), None
        else:
            base = search(cfg_path, filename)
        if not os.path.isfile(base[0]):
            raise ConfigError(
                f"{filename}: its _base_ {cfg_path!r} is not there ({base[0]}). Name a base relative to the config, or "
                "as 'refseg::_base_/...' if it ships with refseg"
            )
        return base

    get_cfg_path.knows_refseg = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)


def write_yapf_cache() -> None:
    """Import yapf (0.43) once before several processes do, because mmengine's configs need it.

    On its first import in a new environment, yapf writes its grammar into a cache, without a lock. A process that
    starts at the same moment can read half of the file, and dies with an EOFError.
    """
    importlib.import_module("yapf.yapflib.yapf_api")


@functools.cache
def format_configs_once() -> None:
    """Keep the formatted texts of configs, which yapf takes 0.4 s each for.

    mmengine 0.10.7 formats the config again for each checkpoint and for each file that it writes.
    """
    from mmengine.config import config

    format_code = config.FormatCode

    @functools.lru_cache(maxsize=8)
    def formatted(text: str, style: tuple) -> tuple[str, bool]:
        return format_code(text, style_config=dict(style))

    config.FormatCode = lambda text, style_config: formatted(text, tuple(style_config.items()))


def torchrun() -> None:
    """Run torch's launcher on the command line's arguments, without its traceback.

    The traceback appears below the error of a process that failed, and hides that error. A process that a signal ended
    prints no error, so one sentence is printed about it. `tools/dist_train.sh` and `tools/dist_test.sh` use this.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    write_yapf_cache()
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(
                f"refseg: error: process {rank} was ended by signal {-failure.exitcode} (9: perhaps out of memory). "
                "The same command with --resume continues a training from its last checkpoint.",
                file=sys.stderr,
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
