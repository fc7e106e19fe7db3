"""Tiny zero-shot models, made once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests of other folders name this folder's module too

from tiny_models import BUILDERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of all tiny models, by kind."""
    root = tmp_path_factory.mktemp("zero_shot")
    return {name: build(root / name) for name, build in BUILDERS.items()}
