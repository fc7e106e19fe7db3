"""Where the project's own files are: configs and tools, in a repository as in an installed wheel, and data."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    inside = _PACKAGE / ".mim" / name  # a wheel, or an editable install's link
    return inside if inside.is_dir() else _PACKAGE.parents[1] / name


def configs_dir() -> Path:
    return _shipped("configs")


def tools_dir() -> Path:
    return _shipped("tools")


def resolve_config(name_or_path: str | Path) -> Path:
    """A path that exists, or a config that ships with refseg by name, with or without `configs/` and `.py`."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    root = configs_dir()
    shipped = {
        str(found.relative_to(root).with_suffix("")): found
        for found in sorted(root.rglob("*.py"))
        if not any(part.startswith("_") for part in found.relative_to(root).parts)
    }
    name = str(name_or_path).removeprefix("configs/").removesuffix(".py")
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)
    papers = [one for one in shipped if os.sep not in one]
    hint = f"did you mean {', '.join(close)}?" if close else f"shipped: {', '.join(papers)}"
    raise FileNotFoundError(f"no config {str(name_or_path)!r}, neither as a file nor among those of {root}; {hint}")


def data_path(path: str | Path) -> Path:
    """`data/...` in a config is relative to the current folder, or to $REFSEG_DATA where that is set."""
    path = Path(path)
    root = os.environ.get("REFSEG_DATA")
    if root and not path.is_absolute() and path.parts[:1] == ("data",):
        return Path(root, *path.parts[1:])
    return path
