"""Rendering of refseg's HTML pages: one file each, without scripts, that loads nothing from the network.

Pages are the jinja2 templates in `templates/`. Autoescape is on, so text from outside enters a page as text. The only
exceptions are SVG plots (`refseg.report.plots`) and the style sheet. The page's own policy forbids scripts as well.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, features

from refseg.visualization.word_bars import INSTANCE_COLORS, Owners, bars, numbers

MAX_TABLE_ROWS = 60  # a tag may have thousands of values
# Control characters except tab and line ends, surrogate halves, and two non-characters: no HTML or SVG may hold them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Replace the characters that no HTML or SVG file may hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def render(template: str, **context: Any) -> str:
    """Render a page from a template of `templates/`."""
    return printable(_environment().get_template(template).render(context))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=format_cell, number=format_number, table=table_of)
    environment.globals["instance_colors"] = INSTANCE_COLORS
    return environment


# Numbers and tables ---------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prepare rows for the table macro: columns in order of first appearance, and the first MAX_TABLE_ROWS rows.

    Columns of numbers are aligned right. The first column heads its row.
    """
    shown = rows[:MAX_TABLE_ROWS]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    numeric = [name for name in columns[1:] if all(_is_number(row.get(name, 0)) or row[name] is None for row in shown)]
    return {"columns": columns, "numeric": numeric, "rows": shown, "num_hidden": len(rows) - len(shown)}


def format_interval(ends: Sequence[float] | None, *, digits: int = 2) -> str:
    """Format an interval such as "[51.47, 58.96]", without line breaks. None becomes a dash."""
    if ends is None:
        return "\u2013"
    return "[" + ",\u00a0".join(f"{end:.{digits}f}" for end in ends) + "]"


def format_cell(value: Any) -> str:
    """Format a table cell: None becomes a dash, lists are joined, and numbers are rounded."""
    if value is None:
        return "\u2013"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value))
    return format_number(value) if _is_number(value) else str(value)


def format_number(value: float) -> str:
    """Format with two decimals, four below one. Whole numbers have none, and NaN becomes a dash."""
    if isinstance(value, Integral):
        return str(int(value))
    if math.isnan(value):
        return "\u2013"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# Pictures and phrases -------------------------------------------------------------------------------------------------


def figure_of(picture: np.ndarray, *, label: str, alt: str) -> dict[str, Any]:
    """Prepare a picture (H, W, 3) for the figure macro.

    Args:
        picture: RGB image, uint8.
        label: Line below the picture.
        alt: Description for readers who cannot see the picture.
    """
    return {"uri": data_uri(picture), "height": picture.shape[0], "width": picture.shape[1], "label": label, "alt": alt}


def data_uri(picture: np.ndarray) -> str:
    """Encode the picture (H, W, 3) as a data URI: WebP (JPEG where Pillow lacks it), or PNG if that is smaller.

    PNG is tried only on pictures of few colors. On others it is slow and never the smallest.
    """
    image = Image.fromarray(picture)
    options: dict[str, dict[str, Any]] = {"jpeg": {"quality": 88, "subsampling": 0}}
    if features.check("webp"):
        options = {"webp": {"quality": 85}}
    if image.getcolors(maxcolors=256) is not None:
        options["png"] = {"optimize": True}
    encoded = {}
    for name, arguments in options.items():
        buffer = io.BytesIO()
        image.save(buffer, format=name, **arguments)
        encoded[name] = buffer.getvalue()
    name = min(encoded, key=lambda key: len(encoded[key]))
    return f"data:image/{name};base64,{base64.b64encode(encoded[name]).decode('ascii')}"


def phrase_html(text: str, owners: Sequence[Owners]) -> Markup:
    """Return the phrase with a bar under each word for each instance that the word belongs to.

    Neighboring words of the same instances form one run, with the instances' numbers below its first word. Bars and
    numbers are hidden from screen readers, which get `numbered_html` instead.

    Args:
        text: The phrase.
        owners: Instances of each word of `text.split()`.
    """
    if not any(owners):
        return Markup.escape(printable(text))
    runs = [
        {"words": [word for _, word in pairs], "bars": bars(owned), "numbers": numbers(owned)}
        for owned, pairs in groupby(zip(owners, text.split(), strict=True), key=itemgetter(0))
    ]
    return Markup(printable(macros().phrase(runs)))


def numbered_html(phrases: Sequence[str], scores: Sequence[float]) -> Markup:
    """List instances, such as "1: red star (0.93) \u00b7 2 (0.88)", where the second one has no words.

    Each phrase is isolated from the direction of the text around it.
    """
    items = [
        (Markup("{}: <bdi>{}</bdi> ({:.2f})") if phrase else Markup("{0} ({2:.2f})")).format(number, phrase, score)
        for number, (phrase, score) in enumerate(zip(phrases, scores, strict=True), start=1)
    ]
    return Markup(printable(Markup(" \u00b7 ").join(items)))


def phrase_style(scope: str = "") -> str:
    """Return the CSS for `phrase_html` below the selector `scope`. The variable `--rim` is the color around bars."""
    return _environment().get_template("phrases.css").render(scope=scope)


def macros() -> Any:
    """Return the macros of `templates/macros.html` as functions."""
    return _environment().get_template("macros.html").module
