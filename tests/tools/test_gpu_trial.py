"""The GPU trial, at toy size on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import REPOSITORY, load_script

SCRIPT = REPOSITORY / "tools" / "benchmark" / "gpu_trial.py"


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def tool() -> ModuleType:
    return load_script("tools/benchmark/gpu_trial.py")


@pytest.fixture
def trial(tool: ModuleType, tmp_path: Path) -> Any:
    return tool.Trial(Namespace(dry_run=True, out=tmp_path, minutes=1, seconds=0))


def test_dry_run_of_a_step(tmp_path: Path) -> None:
    """The step writes its numbers and the report. It has run, so the second call does nothing."""
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path), "--steps", "kernels"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    rows = read_rows(tmp_path)
    assert [row["what"] for row in rows] == ["ceilings", *["deformable attention"] * 2, "step end"]
    assert all(row["device"] == "cpu" and row["torch"] and row["revision"] for row in rows)
    assert rows[1]["error"]["refseg"]["output"] < 1e-5
    report = (tmp_path / "report.md").read_text()
    assert "| float32 | 1 | pytorch | forward |" in report and "| kernels |" in report


def test_step_is_killed_when_its_time_is_over(
    tool: ModuleType, trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_trial.py", "--dry-run", "--out", str(tmp_path)])
    tool.run_step(trial, "profile", 0.05)
    (row,) = read_rows(tmp_path)
    assert (row["step"], row["rc"], row["error"]) == ("profile", 124, "time is over") and row["seconds"] < 60


def test_report(tool: ModuleType, trial: Any, tmp_path: Path) -> None:
    """The newest row of a batch counts, and the end of a file that a kill cut off does not."""
    numbers = dict(batch=8, latency_ms=80.0, peak_memory_mib=2048.0, tflops=75.5, mfu=0.0763)
    for speed in (90.0, 100.0):
        trial.write("instalign", "training", images_per_s=speed, **numbers)
    trial.write("tests", "test", test="a|b", outcome="failed", error="assert 0")
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"step": "insta')
    lines = tool.render(trial).splitlines()
    assert [line for line in lines if line.startswith("| instalign |")] == [
        "| instalign | 8 | 100 | 80 | 2,048 | 75.5 | 0.0763 | - |"
    ]
    assert "| a/b | assert 0 |" in lines and "1 failed" in lines
