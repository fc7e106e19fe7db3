"""Line plots as inline SVG: no library, no script, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refseg.report.text import markup_text

_MAX_POINTS = 400  # drawn per line
_MAX_MARKERS = 40  # points per line that show their value under the pointer

# Lines by number: a colour for light and one for dark backgrounds (the report's CSS swaps them), and dashes.
LINE_COLOURS = ("#0072b2", "#c24e00", "#00795a", "#a8457f", "#5b5b5b", "#7a5c00")
LINE_COLOURS_DARK = ("#56b4e9", "#f0903c", "#2fc495", "#e08fc0", "#c8c8c8", "#f0e442")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2")

_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT_HEIGHT = 440, 58, 24, 34, 190
_ROW = 18  # height of a legend row


@dataclass(frozen=True)
class Curve:
    """One line: `values[i]` was measured at `steps[i]`; steps ascend."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def plot_svg(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str = "iteration",
    smoothing: float = 0.0,
    height: int = _PLOT_HEIGHT,
) -> str:
    """An SVG element with axes, a legend and the lines; the pointer on a point shows its value.

    `smoothing` (0..1) draws the smoothed line over the pale raw one. Colours are attributes that CSS classes
    `line-0`, `line-1`, ... may override; text and axes take the page's own colour. More curves than there are line
    styles are counted in the legend, not drawn.
    """
    drawn, left_out = list(curves[: len(LINE_COLOURS)]), len(curves) - len(LINE_COLOURS)
    legend, legend_height = _legend([curve.name for curve in drawn], left_out, _TOP + height + 46)
    total = _TOP + height + 46 + legend_height
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {total}" role="img" '
        f'aria-label="{markup_text(_describe(title, curves))}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="13" fill="currentColor">',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{markup_text(title)}</text>',
    ]
    xs = [step for curve in drawn for step in curve.steps]
    ys = [value for curve in drawn for value in curve.values if math.isfinite(value)]
    if xs and ys:
        x_axis, y_axis = _Axis.covering(xs, _LEFT, _WIDTH - _RIGHT), _Axis.covering(ys, _TOP + height, _TOP, nice=True)
        parts += [_axes_svg(x_axis, y_axis, x_label)]
        parts += [_line_svg(curve, number, x_axis, y_axis, smoothing) for number, curve in enumerate(drawn)]
        parts += [legend]
    else:
        parts += [f'<text x="{_LEFT}" y="{_TOP + height / 2}">no values logged</text>']
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def covering(cls, values: Sequence[float], start: float, end: float, *, nice: bool = False) -> _Axis:
        """The axis that holds the values; `nice` widens it to whole ticks."""
        low, high = min(values), max(values)
        if low == high:
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        if nice:
            step = _tick_step(low, high)
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round values (steps of 1, 2, 2.5 or 5 times a power of ten) inside low..high."""
    step = _tick_step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_step(low: float, high: float) -> float:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(step for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def format_number(value: float) -> str:
    """A short label: 12000 -> 12k, 0.0001 -> 1e-4, 0.30000000000000004 -> 0.3."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e4 and size < 1e7:
        return f"{value / 1000:.5g}k"
    if size < 1e-3 or size >= 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _axes_svg(x_axis: _Axis, y_axis: _Axis, x_label: str) -> str:
    bottom, left, right = y_axis.start, x_axis.start, x_axis.end
    parts = ['<g stroke="currentColor" stroke-opacity="0.18">']
    parts += [f'<path d="M{left} {y_axis.at(tick):.1f}H{right}"/>' for tick in y_axis.ticks()]
    parts += ["</g>", f'<path d="M{left} {y_axis.end}V{bottom}H{right}" fill="none" stroke="currentColor"/>']
    for tick in y_axis.ticks():
        y = y_axis.at(tick) + 4.5
        parts.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{format_number(tick)}</text>')
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="currentColor"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{format_number(tick)}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">{markup_text(x_label)}</text>')
    return "\n".join(parts)


def _line_svg(curve: Curve, number: int, x_axis: _Axis, y_axis: _Axis, smoothing: float) -> str:
    """The line of one curve, its pale raw line where it is smoothed, and the points that answer the pointer."""
    shown = smooth(curve, smoothing)
    points = _thin([(x, y) for x, y in zip(shown.steps, shown.values, strict=True)], _MAX_POINTS)
    parts = [f'<g class="line-{number}" fill="none" stroke="{LINE_COLOURS[number]}" stroke-width="2">']
    if smoothing:
        raw = _thin(list(zip(curve.steps, curve.values, strict=True)), _MAX_POINTS)
        parts.append(f'<path d="{_path(raw, x_axis, y_axis)}" stroke-width="1" stroke-opacity="0.35"/>')
    dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
    parts.append(f'<path d="{_path(points, x_axis, y_axis)}" stroke-linejoin="round"{dash}/>')
    visible = len(points) <= 12
    for x, y in _thin(points, _MAX_MARKERS):
        if math.isfinite(y):
            label = markup_text(f"{curve.name}: {y:.5g} at {format_number(x)}")
            centre = f'cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}"'
            if visible:
                parts.append(f'<circle {centre} r="2.5"/>')
            parts.append(f'<circle {centre} r="7" stroke="none" pointer-events="all"><title>{label}</title></circle>')
    return "\n".join([*parts, "</g>"])


def _path(points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    """SVG path data; a value that is not finite breaks the line."""
    commands, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            commands.append(f"{pen}{x_axis.at(x):.1f} {y_axis.at(y):.1f}")
        pen = "L" if math.isfinite(y) else "M"
    return "".join(commands)


def _thin(points: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """At most `count` of the points, evenly spread, with the first and the last."""
    if len(points) <= count:
        return points
    return [points[round(index * (len(points) - 1) / (count - 1))] for index in range(count)]


def _legend(names: Sequence[str], left_out: int, top: float) -> tuple[str, float]:
    """The legend below the plot, wrapped into rows, and its height."""
    parts, x, y = [], float(_LEFT), top + 12
    for number, name in enumerate(names):
        width = 38 + 7.2 * len(name)
        if x > _LEFT and x + width > _WIDTH:
            x, y = float(_LEFT), y + _ROW
        dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
        sample = f'<path d="M{x:.1f} {y - 4:.1f}h22" stroke="{LINE_COLOURS[number]}" stroke-width="2.5"{dash}/>'
        parts.append(f'<g class="line-{number}">{sample}</g>')
        parts.append(f'<text x="{x + 28:.1f}" y="{y:.1f}">{markup_text(name)}</text>')
        x += width
    if left_out > 0:
        y += _ROW
        parts.append(f'<text x="{_LEFT}" y="{y:.1f}">and {left_out} more, not drawn</text>')
    return "\n".join(parts), y - top + 8


def _describe(title: str, curves: Sequence[Curve]) -> str:
    """What the plot says, for those who cannot see it."""
    ends = [f"{c.name} from {c.values[0]:.4g} to {c.values[-1]:.4g}" for c in curves[: len(LINE_COLOURS)] if c.values]
    return f"{title}: {'; '.join(ends) or 'no values'}"


def smooth(curve: Curve, weight: float) -> Curve:
    """The exponential moving average, corrected for its start; `weight` 0 keeps the curve. Gaps (NaN) stay gaps."""
    total, mass, values = 0.0, 0.0, []
    for value in curve.values:
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            mass = weight * mass + (1 - weight)
            value = total / mass
        values.append(value)
    return Curve(curve.name, curve.steps, tuple(values))
