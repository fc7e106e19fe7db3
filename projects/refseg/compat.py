"""Work-arounds for libraries, one function each, with the versions concerned and the reason.

Each has a test in `tests/test_compat.py` that fails when the work-around stops working, or when the library no longer
needs it. A work-around that is not needed any more is deleted together with its test.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from typing import Any, NoReturn

from refseg.errors import ConfigError, UsageError

_EXT = "mmcv._ext"


class CompiledOpMissing(ImportError):
    """An mmcv operator was called that exists only in a compiled mmcv."""


class _MissingOp:
    """Stands for one compiled function: it can be imported and passed around, and says why it cannot be called."""

    def __init__(self, name: str, reason: str) -> None:
        self.__name__ = name
        self.reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise CompiledOpMissing(
            f"mmcv's compiled operator '{self.__name__}' was called, but {self.reason}. refseg's own models never need "
            "it; for other models build mmcv from source for this PyTorch "
            "(`pip install --no-binary mmcv 'mmcv>=2.0.0rc4,<2.2'`, needs a compiler), then check with `refseg doctor`."
        )


class _ExtStandIn(types.ModuleType):
    """Answers for `mmcv._ext`: every public name is a `_MissingOp`."""

    __refseg_stand_in__ = True
    reason = "this mmcv has no compiled extension"

    def __getattr__(self, name: str) -> _MissingOp:
        if name.startswith("__"):
            raise AttributeError(name)
        return _MissingOp(name, self.reason)


class _ExtLoader(importlib.abc.Loader):
    """Loads the real extension if there is one that works, else the stand-in."""

    def __init__(self, real: importlib.machinery.ModuleSpec | None) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _ExtStandIn(_EXT)
        if self.real is None or self.real.loader is None:
            return module
        try:
            import torch  # noqa: F401  the extension links against libtorch, which must be loaded first

            return self.real.loader.create_module(self.real) or types.ModuleType(_EXT)
        except ImportError as error:  # compiled for another PyTorch
            module.reason = f"this mmcv's compiled extension does not load ({error})"
            return module

    def exec_module(self, module: types.ModuleType) -> None:
        if not isinstance(module, _ExtStandIn) and self.real is not None and self.real.loader is not None:
            self.real.loader.exec_module(module)


class _ExtFinder(importlib.abc.MetaPathFinder):
    """Finds `mmcv._ext`, whether it was compiled or not."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _EXT:
            return None
        real = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.machinery.ModuleSpec(fullname, _ExtLoader(real), origin=real.origin if real else None)


def install_mmcv_ext_stand_in() -> None:
    """mmcv-lite 2.x, and any mmcv compiled for another PyTorch: `mmcv.ops`, hence `mmdet.models` and `mmseg.models`,
    die importing `mmcv._ext`. mmcv has no binary wheel for current PyTorch.

    An import hook answers for that one module. A compiled extension that works is used as it is; otherwise everything
    imports, and calling a compiled operator raises `CompiledOpMissing`. Nothing is imported here.
    """
    if _EXT not in sys.modules and not any(isinstance(finder, _ExtFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtFinder())


def mmcv_ext_state() -> tuple[bool, str]:
    """Whether mmcv's compiled extension works, and a sentence about it."""
    install_mmcv_ext_stand_in()
    ext = importlib.import_module(_EXT)
    if isinstance(ext, _ExtStandIn):
        return False, ext.reason
    return True, f"compiled extension {getattr(ext, '__file__', '')}"


def _history_method(owner: Any, name: str) -> Any:
    """What `getattr` means inside a checkpoint: a statistic of mmengine's HistoryBuffer, and nothing else."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is HistoryBuffer and name in ("min", "max", "mean", "current"):
        return getattr(HistoryBuffer, name)
    raise ValueError(f"refused to read attribute {name!r} of {owner!r} while loading a checkpoint")


def allow_mmengine_checkpoints() -> None:
    """mmengine 0.10.7 resumes with a bare `torch.load`; since PyTorch 2.6 that means `weights_only=True`, which refuses
    the logging history that mmengine keeps in its own checkpoints.

    What that history is made of (a plain container, its four methods, numpy arrays and numbers) is allowed by name;
    everything else stays refused.
    """
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
    """mmengine 0.10.7: every launcher calls `torch.cuda.set_device`, which fails where there is no GPU.

    Without a GPU, gloo is initialised here from the launcher's environment; mmengine then leaves it alone. Processes
    that wait for each other give up after `timeout_s`, by default PyTorch's half an hour. Returns whether it did.
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
            f"--launcher {launcher}: the environment lacks {', '.join(missing)}. Start through `tools/dist_train.sh` "
            "or `torchrun`, or use --launcher none for a single process."
        )
    timeout = None if timeout_s is None else datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", timeout=timeout)
    return True


def exit_launched(code: int) -> NoReturn:
    """PyTorch 2.14: gloo's threads now and then abort an interpreter that is shutting down ("terminate called without
    an active exception"), after all work is done.

    A process that a launcher started runs its exit handlers, flushes its output, and ends without destructors. Any
    other process ends as usual.
    """
    if os.environ.get("WORLD_SIZE") is None and os.environ.get("SLURM_NTASKS") is None:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wrap_on_cpu(cfg: Any) -> None:
    """mmengine 0.10.7: the default DistributedDataParallel is given the GPU of the rank even where there is none, which
    torch refuses.

    Names the wrapper in the config, with mmengine's defaults and without a device. Synchronised BatchNorm, which
    PyTorch has for GPUs only, becomes the plain one.
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
    """mmengine 0.10.7: `Runner.train` calls `init_weights` of a BaseModule's direct children. timm's and transformers'
    models have a method of that name, which draws new random weights: pretrained ones would be lost silently.

    Marks the module as initialised, which mmengine respects. Returns the module.
    """
    module.is_init = True
    return module


def dict_action() -> type:
    """mmengine 0.10.7's DictAction deletes every blank of a value, so that no path with a blank can be given, and ends
    with a traceback where a value lacks its key."""
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
    """mmengine 0.10.7: `_base_ = 'PACKAGE::FILE'` knows packages from a fixed list, and only as pip installed them.

    Here `refseg::_base_/default_runtime.py` is a file among the configs that ship, in a clone as in a wheel.
    """
    from mmengine.config import Config

    from refseg.paths import configs_dir, resolve_config

    search = Config._get_cfg_path
    if getattr(search, "knows_refseg", False):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, rest = cfg_path.partition("::")
        if package == "refseg" and rest:
            found = str(configs_dir() / rest), None
            if not os.path.isfile(found[0]):  # without its folder, or under a name that was changed
                with contextlib.suppress(FileNotFoundError):
                    found = str(resolve_config(rest)), None
        else:
            found = search(cfg_path, filename)
        if not os.path.isfile(found[0]):
            raise ConfigError(
                f"{filename}: its _base_ {cfg_path!r} is not there ({found[0]}). Bases are named relative to the "
                "config; those that ship are 'refseg::_base_/...'"
            )
        return found

    get_cfg_path.knows_refseg = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)


def torchrun() -> None:
    """torch's launcher prints a traceback of its own below the error of a process that failed, which hides the error.

    Runs it on the command line's arguments without that. A process that ended by a signal said nothing itself: then
    there is one sentence about it. `tools/dist_train.sh` and `tools/dist_test.sh` start through this.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
