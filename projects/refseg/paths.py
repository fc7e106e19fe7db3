"""Paths of configs and tools, in a repository or an installed wheel, and of data."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Collection
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
    """Return the configs that ship with refseg, by name ("lavt_swinb", "vipa/ablations/table9_without_articles").

    The short names of the entry points come first.
    """
    root = configs_dir()
    return {
        file.relative_to(root).with_suffix("").as_posix(): file
        for file in sorted(root.rglob("*.py"), key=lambda file: (file.parent != root, file))
        if not any(part.startswith("_") for part in file.relative_to(root).parts)
    }


def resolve_config(name_or_path: str | Path) -> Path:
    """Return the file of a config.

    Args:
        name_or_path: A path that exists, or the name of a config that ships with refseg, with or without `configs/`,
            its folder, and `.py`. A name that was changed is found too, with a note that gives the new one.

    Raises:
        ConfigError: The path is a folder or a file of another kind, or several configs have the name.
        FileNotFoundError: There is neither a file nor a config of this name.
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
    matches = _names_that_match(name, shipped)
    if not matches:
        lines = (configs_dir() / "renamed.txt").read_text(encoding="utf-8").splitlines()
        renamed = dict(line.split() for line in lines if not line.startswith("#"))
        matches = [renamed[old] for old in _names_that_match(name, renamed)]
        if len(matches) == 1:
            print(f"note: the config {name} is now {matches[0]}", file=sys.stderr)
    if len(matches) > 1:
        raise ConfigError(f"{len(matches)} configs have the name {name!r}. Add the folder: {', '.join(matches)}")
    if matches:
        return shipped[matches[0]]
    close = difflib.get_close_matches(Path(name).name, {Path(full).name for full in shipped}, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "`refseg configs` lists those that ship"
    raise FileNotFoundError(f"no config {str(name_or_path)!r}: no such file, and none ships under that name; {hint}")


def _names_that_match(name: str, names: Collection[str]) -> list[str]:
    """Return the name itself where it is one of `names`, else all that are this name below a folder."""
    return [name] if name in names else [full for full in names if full.endswith(f"/{name}")]


def data_path(path: str | Path) -> Path:
    """Resolve a path in a config: `data/...` is relative to $REFSEG_DATA if that is set, else to the current folder."""
    path = Path(path)
    root = os.environ.get("REFSEG_DATA")
    if root and not path.is_absolute() and path.parts[:1] == ("data",):
        return Path(root, *path.parts[1:])
    return path


def path_to(images: Path, base: Path) -> Path:
    """Return the path from `base` to the folder of images.

    The path keeps links, because files are named by them. But if `base` is a link, ".." leads out of its target.
    """
    folder = os.path.relpath(os.path.abspath(images), os.path.abspath(base))
    if os.path.realpath(os.path.join(base, folder)) != os.path.realpath(images):
        folder = os.path.relpath(os.path.abspath(images), os.path.realpath(base))
    return Path(folder)
