"""Contents of a run's work directory: training curves, config, environment, checkpoints. Nothing in it is executed.

mmengine's `vis_data/scalars.json` holds one JSON object per line. Train rows carry `lr`, losses and `iter`, and `epoch`
where epochs are counted. Validation rows carry metrics such as `refseg/gIoU`. `step` is the iteration. With mmengine's
default settings, it is the epoch on validation rows, and the row is placed at that epoch's last logged iteration.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refseg.errors import UsageError
from refseg.report.plots import Curve

_NOT_METRICS = {"step", "iter", "epoch", "time", "data_time", "memory"}
_ENVIRONMENT = re.compile(r"^(?:System|Runtime) environment:\n((?: .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    ([\w ().-]+): (.*[^:\s])$", re.MULTILINE)
_MAX_LOG = 64 * 1024  # characters at the top of a log that are searched for the environment
_MAX_CONFIG = 200_000  # characters of a config


@dataclass(frozen=True)
class TrainingCurves:
    """Values that a training run logged. `others` are training values such as the norm of the gradients."""

    losses: tuple[Curve, ...] = ()
    metrics: tuple[Curve, ...] = ()
    learning_rates: tuple[Curve, ...] = ()
    others: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class WorkDir:
    """A work directory. `config` is the config's name; `checkpoints` lists the best ones first, then the newest."""

    path: Path
    config: str = ""
    config_text: str = ""
    curves: TrainingCurves = field(default_factory=TrainingCurves)
    environment: dict[str, str] = field(default_factory=dict)
    checkpoints: tuple[Path, ...] = ()


def read_work_dir(path: str | Path) -> WorkDir:
    """Read a work directory. The newest config and the newest log count.

    Raises:
        UsageError: If the directory does not exist.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no such work directory: {folder}")

    def modified(file: Path) -> float:
        return file.stat().st_mtime

    configs = sorted((*folder.glob("*.py"), *folder.glob("*/vis_data/config.py")), key=modified)
    logs = sorted(folder.glob("*/*.log"), key=modified)
    checkpoints = sorted(folder.glob("*.pth"), key=lambda file: (file.name.startswith("best_"), modified(file)))
    named = [file for file in configs if file.parent == folder]
    return WorkDir(
        path=folder,
        config=named[-1].stem if named else "",
        config_text=_text(configs[-1])[:_MAX_CONFIG] if configs else "",
        curves=training_curves(scalar_rows(folder)),
        environment=environment_in(_text(logs[-1])[:_MAX_LOG]) if logs else {},
        checkpoints=tuple(checkpoints[::-1]),
    )


def environment_in(log: str) -> dict[str, str]:
    """Parse the environment that mmengine writes at the top of a log, without the multi-line compiler details."""
    return dict(entry for block in _ENVIRONMENT.findall(log) for entry in _ENTRY.findall(block))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


# Training curves ------------------------------------------------------------------------------------------------------


def scalar_rows(folder: str | Path) -> list[dict]:
    """Read all rows that the runs in a work directory logged, in the order of the runs."""
    return [row for file in sorted(Path(folder).glob("*/vis_data/scalars.json")) for row in read_scalars(file)]


def read_scalars(path: str | Path) -> list[dict]:
    """Read the rows of a scalars.json.

    A half-written last line (the run is still going, or died) is skipped. Any other line that is not a JSON object is
    skipped with a warning.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            row = line
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None and number < len(lines):
            warnings.warn(f"{path}, line {number} is not a JSON object and is skipped", stacklevel=2)
    return rows


def training_curves(rows: Iterable[Mapping]) -> TrainingCurves:
    """Turn rows into curves.

    Args:
        rows: Logged rows, in order. The rows of a resumed run may follow those of the first run: of two values for one
            step, the later one counts.
    """
    points: dict[tuple[str, str], dict[float, float]] = {}
    iteration: float = 0
    last_iterations: dict[float, float] = {}  # by epoch
    for row in rows:
        is_train = "iter" in row or any(_group(name) in {"lr", "loss"} for name in row)
        if is_train:
            step = iteration = row.get("iter", row.get("step", iteration))
            if row.get("epoch") is not None:
                last_iterations[row["epoch"]] = iteration
        else:
            step = row.get("step", iteration)
            if step < iteration:  # an epoch
                step = last_iterations.get(step, step)
        for name, value in row.items():
            group = "other" if is_train and _group(name) == "metric" else _group(name)
            if group and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault((group, name), {})[step] = float(value)
    curves: dict[str, list[Curve]] = {"loss": [], "metric": [], "lr": [], "other": []}
    for (group, name), line in points.items():
        curves[group].append(Curve(name, *zip(*sorted(line.items()), strict=True)))
    return TrainingCurves(*map(tuple, curves.values()))


def _group(name: str) -> str | None:
    if name in _NOT_METRICS:
        return None
    if name.endswith("lr"):
        return "lr"
    return "loss" if "loss" in name else "metric"
