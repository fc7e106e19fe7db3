"""What a run left in its work directory: curves, config, environment, checkpoints. Nothing in it is executed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from refseg.errors import UsageError
from refseg.report.curves import TrainingCurves, read_scalars, training_curves

_ENVIRONMENT = re.compile(r"^(?:System|Runtime) environment:\n((?: .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    ([\w ().-]+): (.*[^:\s])$", re.MULTILINE)
_HEAD = 64 * 1024  # characters of a log in which its environment stands
_MOST_TEXT = 200_000  # characters of a config


@dataclass(frozen=True)
class WorkDir:
    """`config`: its name. `checkpoints`: best ones first, then the newest."""

    path: Path
    config: str = ""
    config_text: str = ""
    curves: TrainingCurves = field(default_factory=TrainingCurves)
    environment: dict[str, str] = field(default_factory=dict)
    checkpoints: tuple[Path, ...] = ()


def scalar_rows(folder: str | Path) -> list[dict]:
    """All that the runs in a work directory logged, in the order of the runs."""
    return [row for file in sorted(Path(folder).glob("*/vis_data/scalars.json")) for row in read_scalars(file)]


def read_work_dir(path: str | Path) -> WorkDir:
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no such work directory: {folder}")
    configs = sorted((*folder.glob("*.py"), *folder.glob("*/vis_data/config.py")), key=_age)
    logs = sorted(folder.glob("*/*.log"), key=_age)
    checkpoints = sorted(folder.glob("*.pth"), key=lambda file: (file.name.startswith("best_"), _age(file)))
    named = [file for file in configs if file.parent == folder]
    return WorkDir(
        path=folder,
        config=named[-1].stem if named else "",
        config_text=_text(configs[-1])[:_MOST_TEXT] if configs else "",
        curves=training_curves(scalar_rows(folder)),
        environment=environment_in(_text(logs[-1])[:_HEAD]) if logs else {},
        checkpoints=tuple(checkpoints[::-1]),
    )


def environment_in(log: str) -> dict[str, str]:
    """What mmengine writes at the top of a log, without what compilers were told."""
    return dict(entry for block in _ENVIRONMENT.findall(log) for entry in _ENTRY.findall(block))


def _age(file: Path) -> float:
    return file.stat().st_mtime


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
