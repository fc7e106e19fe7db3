"""Configs as data: the `config.json` of a model folder, which may come from a stranger.

A Python config is a program. A `config.json` is not: it can only name parts that are registered in refseg, mmengine,
mmdet, or mmseg. mmengine alone would import whatever module an unknown `type` names. Hooks, loggers, and everything
else about a run come from refseg's own runtime config. Paths are relative to the user's data and working folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from refseg import registry
from refseg.errors import ConfigError
from refseg.files import write_atomically
from refseg.models import MODULES
from refseg.paths import configs_dir
from refseg.version import __version__

CONFIG = "config.json"
VERSION = "refseg_version"
SECTIONS = (
    *("default_scope", "model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "val_cfg"),
    *("test_cfg", "val_evaluator", "test_evaluator", "optim_wrapper", "param_scheduler", "auto_scale_lr", "randomness"),
)
_TYPE = re.compile(r"(?:(refseg|mmengine|mmdet|mmseg)\.)?([A-Za-z_]\w*)")
_TYPE_KEYS = ("type", "constructor")  # name a registered class
_METRIC_KEYS = {"type", "protocols", "no_target", "save_best"}  # its other arguments write files
# Keys with which transformers and mmengine import code, or fetch it
_CODE_KEYS = {
    *("_base_", "custom_imports", "auto_map", "trust_remote_code", "attn_implementation", "_attn_implementation"),
    *("experts_implementation", "_experts_implementation", "quantization_config"),
}
_OUTSIDE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|.*://|(?:.*[/\\])?\.\.(?:[/\\]|$)|(?:hf[-_]hub|local-dir):", re.DOTALL)


def read_json_config(path: Path) -> Config:
    """Read a `config.json`, and add the runtime config. Nothing that the file names is imported before it is checked.

    Raises:
        ConfigError: The file is no config of a model, or names code, files to write, or paths outside.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or VERSION not in content or not isinstance(content.get("model"), dict):
        raise ConfigError(
            f"{path} is not the config of a refseg model: it has no {VERSION!r} and 'model'. `refseg publish` writes "
            "such a file. Other configs are Python files"
        )
    if complaints := list(_complaints(content)):
        lines = "\n  ".join(complaints[:20])
        raise ConfigError(f"{path} is refused. It must be data only, and all parts must be registered\n  {lines}")
    del content[VERSION]
    runtime = "iterations_runtime" if (content.get("train_cfg") or {}).get("max_iters") else "default_runtime"
    base = Config.fromfile(configs_dir() / "_base_" / f"{runtime}.py")
    return Config({**base.to_dict(), **content}, filename=str(path))


def name_of_config(path: Path) -> str:
    """Return a name for people: that of the file, of the model folder, or of the model on the hub."""
    if path.name != CONFIG:
        return path.stem
    folder = Path(os.path.abspath(path)).parent
    cached = folder.parent.parent.name  # models--user--model/snapshots/COMMIT
    return cached.removeprefix("models--").replace("--", "/") if cached.startswith("models--") else folder.name


def write_json_config(cfg: Config, path: Path) -> None:
    """Write the parts of a config that belong to the model, without paths of this machine.

    Raises:
        ConfigError: The config has parts that a `config.json` cannot hold, such as classes of one's own.
    """
    complete = cfg.to_dict()
    content = {key: portable(complete[key]) for key in SECTIONS if complete.get(key) is not None}
    try:
        text = json.dumps({VERSION: __version__, **content}, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cfg.filename}: the config cannot be written as JSON ({error})") from None
    if complaints := list(_complaints(json.loads(text))):
        lines = "\n  ".join(complaints)
        raise ConfigError(
            f"{cfg.filename}: this model cannot be published as a {CONFIG}, which is data only. Pass on its work "
            f"directory instead\n  {lines}"
        )
    write_atomically(path, text + "\n")


def portable(value: Any) -> Any:
    """Return nested values with `data/...` for paths in the data root, and names for other paths of this machine."""
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    if not isinstance(value, str | Path) or not _OUTSIDE.match(str(value)):
        return str(value) if isinstance(value, Path) else value
    path = Path(value)
    root = Path(os.path.abspath(os.environ.get("REFSEG_DATA") or "data"))
    return f"data/{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else path.name


def is_registered(name: Any) -> bool:
    """Return whether a name is that of a registered part, without importing a module that the name contains."""
    match = _TYPE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return False
    scope, short = match.groups()
    if scope in ("mmdet", "mmseg"):
        foreign = import_module(f"{scope}.registry")
        registries = [foreign.MODELS, foreign.TASK_UTILS]
    elif short in MODULES:
        return True
    else:
        own = [one for one in vars(registry).values() if isinstance(one, Registry)]
        own.sort(key=lambda one: one is not registry.MODELS)  # first, because it imports the least
        registries = [each for one in own for each in (one, one.parent)]
    for one in registries:
        one.import_from_location()
        if short in one.module_dict:
            return True
    return False


def _complaints(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a `config.json` must not have."""
    for key, value in content.items():
        if key != VERSION and key not in SECTIONS:
            yield f"{key}: not a part of a model. Known: {', '.join(SECTIONS)}"
        elif key.endswith("_evaluator") and value is not None:
            if not isinstance(value, dict) or value.get("type") not in ("ReferringMetric", "refseg.ReferringMetric"):
                yield f"{key}: must be one ReferringMetric"
            elif extra := sorted(set(value) - _METRIC_KEYS):
                yield f"{key}.{extra[0]}: not allowed here. Known: {', '.join(sorted(_METRIC_KEYS))}"
    if content.get("default_scope", "refseg") != "refseg":
        yield f"default_scope: must be 'refseg', not {content['default_scope']!r}"
    yield from _unsafe(content, "")


def _unsafe(value: Any, place: str) -> Iterator[str]:
    """Yield what names code or a path outside, in nested values."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _unsafe(inner, f"{place}[{number}]")
    elif isinstance(value, str) and _OUTSIDE.match(value):
        yield f"{place}: {value!r} is a path or an address outside of the working folder"
    elif isinstance(value, dict):
        for key, inner in value.items():
            where = f"{place}.{key}" if place else key
            if key in _CODE_KEYS:
                yield f"{where}: this key loads code"
            elif key in _TYPE_KEYS and not is_registered(inner):
                yield f"{where}: nothing is registered as {inner!r}"
            elif key == "_scope_" and inner not in ("refseg", "mmengine", "mmdet", "mmseg"):
                yield f"{where}: unknown scope {inner!r}"
            elif key == "pretrained" and inner is True and str(value.get("type")).startswith("mm"):
                yield f"{where}: downloads weights. Name the part without them: its weights are in the model's file"
            else:
                yield from _unsafe(inner, where)
