"""Reading a work directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refseg.errors import UsageError
from refseg.report.work_dir import environment_in, read_work_dir


def test_environment_of_a_log() -> None:
    """Both blocks have entries. Compiler details and later lines are skipped."""
    log = (
        "INFO - \n---\nSystem environment:\n    Python: 3.11.7 (main) [GCC]\n    PyTorch compiling details: x:\n"
        "  - C++ Version: 2020\n\n    OpenCV: 4\n\nRuntime environment:\n    seed: 0\n---\nConfig:\n    a: 1\n"
    )
    result = environment_in(log)
    assert result["Python"] == "3.11.7 (main) [GCC]" and result["seed"] == "0" and result["OpenCV"] == "4"
    assert result.keys() == {"Python", "OpenCV", "seed"}
    assert environment_in("nothing") == {}


def _touch(file: Path, age: int, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (1e9 - age, 1e9 - age))


def test_order_of_checkpoints_and_configs(tmp_path: Path) -> None:
    for name, age in (("epoch_1.pth", 3), ("epoch_2.pth", 1), ("best_a.pth", 4), ("best_b.pth", 2)):
        _touch(tmp_path / name, age)
    _touch(tmp_path / "named.py", 9, "old = 1")
    _touch(tmp_path / "2026" / "vis_data" / "config.py", 5, "new = 1")
    result = read_work_dir(tmp_path)
    assert [file.name for file in result.checkpoints] == ["best_b.pth", "best_a.pth", "epoch_2.pth", "epoch_1.pth"]
    assert result.config == "named" and result.config_text == "new = 1"
    with pytest.raises(UsageError, match="no such work directory"):
        read_work_dir(tmp_path / "named.py")
