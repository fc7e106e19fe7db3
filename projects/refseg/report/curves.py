"""Training curves: read from mmengine's `vis_data/scalars.json`, and drawn.

The file holds one JSON object per line. Train rows carry `lr`, losses and `iter`, and `epoch` where epochs are counted.
Validation rows carry metrics such as `refseg/gIoU`. `step` is the iteration, except on the validation rows of a run
that counts epochs, where it is the epoch: those are placed at the last iteration that was logged in it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refseg.report.plots import Curve, plot_svg

_MOST_OTHERS = 8  # plots of other values
_NOT_METRICS = {"step", "iter", "epoch", "time", "data_time", "memory"}
_AUXILIARY_LOSS = re.compile(r"(^|[./_])(d\d+|aux\w*)[./]")  # losses of single decoder layers: too many to draw


@dataclass(frozen=True)
class TrainingCurves:
    """What one training run logged."""

    losses: tuple[Curve, ...] = ()
    metrics: tuple[Curve, ...] = ()
    learning_rates: tuple[Curve, ...] = ()
    others: tuple[Curve, ...] = ()  # of training, such as the norm of gradients


def read_scalars(path: str | Path) -> list[dict]:
    """The rows of a scalars.json. A half-written last line (a run that is still going, or died) is left out.

    Any other line that is no JSON object is left out with a warning.
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
            warnings.warn(f"{path}, line {number} is no JSON object and is left out", stacklevel=2)
    return rows


def training_curves(rows: Iterable[Mapping]) -> TrainingCurves:
    """Rows, in the order in which they were logged, as curves. Rows of a resumed run may simply follow those of the
    first: of two values for one step, the later one counts."""
    points: dict[tuple[str, str], dict[float, float]] = {}
    iteration: float = 0
    ends: dict[float, float] = {}  # epoch -> the last iteration that was logged in it
    for row in rows:
        if _is_train_row(row):
            step = iteration = row.get("iter", row.get("step", iteration))
            if row.get("epoch") is not None:
                ends[row["epoch"]] = iteration
        else:
            step = row.get("step", iteration)
            step = ends.get(step, step)
        for name, value in row.items():
            group = "other" if _is_train_row(row) and _group(name) == "metric" else _group(name)
            if group and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault((group, name), {})[step] = float(value)
    curves = [(group, Curve(name, *zip(*sorted(line.items()), strict=True))) for (group, name), line in points.items()]
    return TrainingCurves(
        losses=tuple(curve for group, curve in curves if group == "loss"),
        metrics=tuple(curve for group, curve in curves if group == "metric"),
        learning_rates=tuple(curve for group, curve in curves if group == "lr"),
        others=tuple(curve for group, curve in curves if group == "other"),
    )


def _is_train_row(row: Mapping) -> bool:
    return "iter" in row or any(_group(name) in {"lr", "loss"} for name in row)


def _group(name: str) -> str | None:
    if name in _NOT_METRICS:
        return None
    if name.endswith("lr"):
        return "lr"
    return "loss" if "loss" in name else "metric"


def main_losses(losses: Sequence[Curve]) -> list[Curve]:
    """The losses worth drawing: the total first, then the others, without those of single decoder layers."""
    drawn = [curve for curve in losses if not _AUXILIARY_LOSS.search(curve.name)]
    return sorted(drawn, key=lambda curve: curve.name != "loss")


def _telling(curves: Sequence[Curve]) -> list[Curve]:
    """Those that are not always 0, as many as are drawn."""
    return [curve for curve in curves if any(curve.values)][:_MOST_OTHERS]


def training_plots(curves: TrainingCurves) -> list[str]:
    """The SVG elements of a run: train losses (smoothed), validation metrics, learning rates, and the first other
    values of training that are not always 0; what was not logged has no plot."""
    plots = [
        ("Train loss (smoothed; the raw line is pale)", main_losses(curves.losses), 0.8),
        ("Validation metrics", curves.metrics, 0.0),
        ("Learning rate", curves.learning_rates, 0.0),
        *((curve.name, [curve], 0.0) for curve in _telling(curves.others)),
    ]
    return [plot_svg(lines, title=title, smoothing=smoothing) for title, lines, smoothing in plots if lines]
