"""Line plots, drawn with matplotlib: inline SVG whose colors follow the page, without scripts, and PNG files."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from refseg.report.page import printable

# A line's color is the CSS variable --line-N. The style sheet sets it for dark pages; elsewhere the value here holds.
LINE_COLORS = ("#0072b2", "#c24e00", "#00795a", "#a8457f", "#5b5b5b", "#7a5c00", "#6a3fb5")
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)), (0, (2, 1)), (0, (9, 2, 2, 2)))
_INK = "#010203"  # stands for the color of the page's text
_MAX_POINTS = 400  # per line
_MAX_TOOLTIPS = 40  # points per line that show their value under the pointer
_MAX_LABEL = 60  # characters
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # names are plain text, whatever they contain
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Curve:
    """One line: `values[i]` was measured at `steps[i]`. Steps ascend."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def plot_svg(curves: Sequence[Curve], *, title: str, x_label: str = "iteration", smoothing: float = 0.0) -> str:
    """Draw curves as an SVG element with axes and a legend. The pointer on a point shows its value.

    Args:
        curves: Lines to draw. Those beyond the number of line styles are counted in the legend.
        title: Heading of the plot.
        x_label: Name of the x axis.
        smoothing: Weight (0 to 1) of the moving average. The raw line is drawn pale behind the smoothed one.
    """
    drawn, num_hidden = curves[: len(LINE_COLORS)], len(curves) - len(LINE_COLORS)
    title = printable(title)
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": f"refseg {title}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        labels = [printable(curve.name)[:_MAX_LABEL] for curve in drawn]
        labels += [f"and {num_hidden} more, not drawn"] * (num_hidden > 0)
        longest = max(map(len, labels), default=0)
        columns = 3 if longest <= 12 else 2 if longest <= 22 else 1
        rows = math.ceil(len(labels) / columns)
        figure = Figure(figsize=(5.5, 3.3 + 0.26 * rows), dpi=72, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title[:_MAX_LABEL], loc="left", fontweight="bold", fontsize=13)
        axes.set_xlabel(printable(x_label))
        axes.grid(axis="y", color=_INK, alpha=0.15)
        axes.xaxis.set_major_formatter(_tick_label)
        axes.yaxis.set_major_formatter(_tick_label)

        # Lines, with the raw one behind where it is smoothed
        handles, points = [], []
        for curve, color, dashes in zip(drawn, LINE_COLORS, _DASHES, strict=False):
            shown = _thin(smooth(curve, smoothing), _MAX_POINTS)
            if smoothing:
                raw = _thin(curve, _MAX_POINTS)
                axes.plot(raw.steps, raw.values, color=color, alpha=0.35, linewidth=1)
            marker = "o" if len(shown.steps) <= 12 else None
            handles += axes.plot(
                shown.steps, shown.values, color=color, linestyle=dashes, marker=marker, markersize=5, linewidth=2
            )
            few = _thin(shown, _MAX_TOOLTIPS)
            points += [(few.name, x, y) for x, y in zip(few.steps, few.values, strict=True) if math.isfinite(y)]

        # Legend below the axes
        handles += [Line2D([], [], alpha=0)] * (num_hidden > 0)
        if points:
            figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, handlelength=2.4)
        else:
            axes.text(0.5, 0.5, "no values logged", ha="center", transform=axes.transAxes)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)

    # Transparent circles that answer the pointer
    height, tooltips = figure.bbox.height, []
    for name, x, y in points:
        left, bottom = axes.transData.transform((x, y))
        text = escape(printable(f"{name}: {y:.5g} at {_tick_label(x)}"))
        circle = f'<circle cx="{left:.1f}" cy="{height - bottom:.1f}" r="7" fill="transparent">'
        tooltips.append(f"{circle}<title>{text}</title></circle>")

    # What the plot shows, for those who cannot see it
    ends = [f"{c.name} from {c.values[0]:.4g} to {c.values[-1]:.4g}" for c in drawn if c.values]
    label = f"{title}: {'; '.join(ends) or 'no values'}"
    return _for_pages(file.getvalue(), label, tooltips)


def plot_png(plots: Sequence[tuple[Sequence[Curve], str, float]], *, title: str) -> bytes:
    """Draw plots side by side as a PNG.

    Args:
        plots: Curves, name of the x axis, and a step of the curves to mark. The legend shows the values there.
        title: Heading of the picture.
    """
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(6.5 * len(plots), 4.5), dpi=120, layout="constrained")
        figure.suptitle(printable(title), x=0.01, ha="left", fontweight="bold", fontsize=13)
        for axes, (curves, x_label, mark) in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            axes.set_xlabel(printable(f"{x_label} (marked: {mark:g})"))
            axes.grid(axis="y", color=_INK, alpha=0.15)
            axes.axvline(mark, color=_INK, linewidth=1, alpha=0.5)
            for curve, color, dashes in zip(curves, LINE_COLORS, _DASHES, strict=False):
                y = curve.values[curve.steps.index(mark)]
                label = printable(f"{curve.name} ({y:.2f})")
                axes.plot(curve.steps, curve.values, color=color, linestyle=dashes, linewidth=2, label=label)
                axes.plot([mark], [y], color=color, marker="o", markersize=7)
            axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def bars_svg(counts: Mapping[str, int], *, title: str) -> str:
    """Draw counts as an SVG element with a bar for each name. The number stands above its bar.

    Args:
        counts: Number by name, in the order of the bars.
        title: Heading of the plot.
    """
    title = printable(title)
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": f"refseg {title}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(5.5, 3.3), dpi=72, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title[:_MAX_LABEL], loc="left", fontweight="bold", fontsize=13)
        bars = axes.bar([printable(name)[:_MAX_LABEL] for name in counts], list(counts.values()), color=LINE_COLORS[0])
        axes.bar_label(bars, [f"{number:,}" for number in counts.values()], padding=2)
        axes.margins(y=0.12)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    label = f"{title}: {', '.join(f'{name}: {number:,}' for name, number in counts.items())}"
    return _for_pages(file.getvalue(), label, [])


def _for_pages(svg: str, label: str, tooltips: Sequence[str]) -> str:
    """Adapt matplotlib's file: the page's font and colors, no ids but those that are referred to, no style sheet."""
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font-family: [^;\"<]*; ", "", svg)
    svg = svg.replace(_INK, "currentColor")
    for number, color in enumerate(LINE_COLORS):
        svg = svg.replace(color, f"var(--line-{number}, {color})")
    view = re.search(r'viewBox="[^"]*"', svg)
    head = (
        f'<svg class="plot" {view[0] if view else ""} role="img" aria-label="{escape(printable(label))}" '
        'xmlns="http://www.w3.org/2000/svg" style="font-family: system-ui, sans-serif; stroke-linejoin: round">'
    )
    body = re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 : svg.rindex("</svg>")])
    return "\n".join([head + body, *tooltips, "</svg>"])


def _tick_label(value: float, position: float = 0) -> str:
    """Format a number briefly, such as 12k for 12000. Matplotlib also passes the tick's position."""
    return f"{value / 1000:g}k" if 1e4 <= abs(value) < 1e7 else f"{value:g}"


def _thin(curve: Curve, count: int) -> Curve:
    """At most `count` points of the curve, evenly spread, with the first and the last."""
    if len(curve.steps) <= count:
        return curve
    kept = np.linspace(0, len(curve.steps) - 1, count).round().astype(int)
    return Curve(curve.name, tuple(curve.steps[i] for i in kept), tuple(curve.values[i] for i in kept))


def smooth(curve: Curve, weight: float) -> Curve:
    """Compute the exponential moving average, corrected for its start. Weight 0 keeps the curve. NaN stays."""
    total, mass, values = 0.0, 0.0, []
    for value in curve.values:
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            mass = weight * mass + (1 - weight)
            value = total / mass
        values.append(value)
    return Curve(curve.name, curve.steps, tuple(values))
