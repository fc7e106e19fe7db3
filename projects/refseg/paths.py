"""Paths of configs and tools, in a repository or an installed wheel, and of data."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from refseg.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    inside = _PACKAGE / ".mim" / name  # a wheel, or an editable install's link
    return inside if inside.is_dir() else _PACKAGE.parents[1] / name


def configs_dir() -> Path:
    return _shipped("configs")


def tools_dir() -> Path:
    return _shipped("tools")


def shipped_configs() -> dict[str, Path]:
    """Return the configs that ship with refseg, by name ("instalign_swinb", "vipa_ablations/table5_vanilla")."""
    root = configs_dir()
    return {
        str(file.relative_to(root).with_suffix("")): file
        for file in sorted(root.rglob("*.py"))
        if not any(part.startswith("_") for part in file.relative_to(root).parts)
    }


def resolve_config(name_or_path: str | Path) -> Path:
    """Return the file of a config.

    Args:
        name_or_path: A file, or the name of a config that ships with refseg, with or without `configs/` and `.py`.
    """
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix not in (".py", ".json", ".yaml", ".yml"):
            kinds = {".jsonl": "a file of data", **dict.fromkeys((".pth", ".pt", ".safetensors"), "a checkpoint")}
            raise ConfigError(
                f"{path} is {kinds.get(path.suffix, 'no Python file')}, not a config. Name a config (.py), or one of "
                "those that `refseg configs` lists"
            )
        return path
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a config. Name the config file (.py) in it")
    shipped = shipped_configs()
    name = str(name_or_path).removeprefix("configs/").removesuffix(".py")
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "`refseg configs` lists those that ship"
    raise FileNotFoundError(f"no config {str(name_or_path)!r}: no such file, and none ships under that name; {hint}")


def data_path(path: str | Path) -> Path:
    """Resolve a path in a config: `data/...` is relative to $REFSEG_DATA if that is set, else to the current folder."""
    path = Path(path)
    root = os.environ.get("REFSEG_DATA")
    if root and not path.is_absolute() and path.parts[:1] == ("data",):
        return Path(root, *path.parts[1:])
    return path
