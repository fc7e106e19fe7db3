"""The few lines that a run prints. The log file has everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from refseg.engine.run import RunOptions, train
from refseg.engine.screen import score_table


def test_training_prints_a_few_lines(tmp_path: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of 6 steps print a line per step and two tables. mmengine's dumps are in the log file."""
    train(str(tiny_config), RunOptions(work_dir=str(tmp_path)))
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if not line.startswith("warning: batch: 4")]  # 8 are the config's
    assert len(lines) < 60 and not any("mmengine" in line for line in lines)
    start = [line.split()[0] for line in lines[:7]]
    assert start == ["preflight", "train", "val", "model", "batch", "rate", "log"]
    assert "24 images, 144 phrases" in lines[1] and "of them trained" in lines[3]
    steps = [line for line in lines if line.startswith("epoch ")]
    assert len(steps) == 12 and all("samples/s" in line and "loss " in line for line in steps)
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert "System environment" in log and "Config:" in log and "Epoch(train)" in log and steps[0] in log


def test_score_table_is_aligned() -> None:
    lines = list(score_table("val", {"gres/gIoU": 51.234, "refseg/gIoU": 50.0, "refseg/Pr@0.5": 7.0, "time": 1.0}))
    assert lines == [
        "val         gres    refseg",
        "gIoU       51.23     50.00",
        "Pr@0.5         -      7.00",
    ]
    assert len({len(line) for line in lines}) == 1


def test_best_values_are_marked() -> None:
    """A star marks values that no earlier validation exceeds. The first validation has none."""
    metrics = {"gres/gIoU": 51.2, "refseg/gIoU": 50.0}
    first = list(score_table("val", metrics, {}))
    later = list(score_table("val", metrics, {"gres/gIoU": 51.2, "refseg/gIoU": 60.0}))
    assert first[1] == "gIoU     51.20     50.00"
    assert later[1] == "gIoU *   51.20     50.00"
