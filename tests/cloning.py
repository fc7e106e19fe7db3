"""Copies of parts of the repository, for tests of what happens in a clone."""

from __future__ import annotations

import shutil
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".mim", ".*_cache", "work_dirs")


def clone(to: Path, *names: str) -> Path:
    """A copy of some files and folders of the repository."""
    for name in names:
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, target, ignore=NOT_COPIED)
        elif (REPO / name).is_file():
            shutil.copy(REPO / name, target)
    return to
