"""The pieces of refseg's HTML pages: one file each, without scripts, which asks nothing of the network.

Every piece is a function from data to HTML; `page` joins them. Text from outside is escaped in `_text`, the only way in
which it enters a page; arguments named `html` are HTML already. The page's own policy forbids scripts besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from refseg.report.examples import data_uri
from refseg.report.style import style_sheet
from refseg.report.text import markup_text as _text

MOST_LINES = 60  # of a table: a tag may have thousands of values
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, sections: Mapping[str, str]) -> str:
    """A whole page: `sections` are HTML by heading; empty ones are left out."""
    sections = {heading: html for heading, html in sections.items() if html}
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    links = "".join(f'<li><a href="#{_text(ids[name])}">{_text(name)}</a></li>' for name in sections)
    body = "\n".join(
        f'<section id="{_text(ids[name])}"><h2>{_text(name)}</h2>\n{html}</section>' for name, html in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{style_sheet()}</style>
</head>
<body>
<header><h1>{_text(title)}</h1></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer></footer>
</body>
</html>
"""


# Words and numbers ----------------------------------------------------------------------------------------------------


def soft(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="soft">{_text(text)}</p>'


def bullets(texts: Sequence[str]) -> str:
    return f'<ul class="soft">{"".join(f"<li>{_text(text)}</li>" for text in texts)}</ul>' if texts else ""


def facts(values: Mapping[str, Any]) -> str:
    items = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(cell(value))}</dd></div>" for key, value in values.items())
    return f'<dl class="facts">{items}</dl>' if items else ""


def headline(values: Mapping[str, float]) -> str:
    """Numbers in large type."""
    items = "".join(
        f'<div><dt>{_text(name)}</dt><dd class="value">{_text(number(value))}</dd></div>'
        for name, value in values.items()
    )
    return f'<dl class="cards">{items}</dl>' if items else ""


def table(rows: Sequence[Mapping[str, Any]], *, caption: str) -> str:
    """Rows as an HTML table, of the first MOST_LINES of them. Columns come in the order of first appearance; the first
    one heads its row."""
    left_out = len(rows) - MOST_LINES
    rows = rows[:MOST_LINES]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in columns[1:] if all(is_number(row.get(name, 0)) or row[name] is None for row in rows)}
    kinds = {name: ' class="number"' if name in numeric else "" for name in columns}
    head = "".join(f'<th scope="col"{kinds[name]}>{_text(name)}</th>' for name in columns)
    body = []
    for row in rows:
        first = f'<th scope="row">{_text(cell(row.get(columns[0])))}</th>'
        rest = "".join(f"<td{kinds[name]}>{_text(cell(row.get(name)))}</td>" for name in columns[1:])
        body.append(f"<tr>{first}{rest}</tr>")
    more = soft(f"and {left_out:,} more lines, not shown") if left_out > 0 else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(f"Table by {columns[0]}")}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"{more}"
    )


def titled_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]], *, caption: str) -> str:
    """Tables side by side, by heading; those without rows are left out."""
    parts = [
        f"<div><h3>{_text(name)}</h3>{table(rows, caption=caption)}</div>" for name, rows in tables.items() if rows
    ]
    return f'<div class="tables">{"".join(parts)}</div>' if parts else ""


def interval(ends: Sequence[float] | None, *, digits: int = 2) -> str:
    """Such as "[51.47, 58.96]", unbroken; a dash where there is none."""
    if ends is None:
        return "\u2013"
    return f"[{', '.join(f'{end:.{digits}f}' for end in ends)}]".replace(" ", "\u00a0")


def cell(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value))
    return number(value) if is_number(value) else str(value)


def number(value: float) -> str:
    """Two decimals, four below one; whole numbers as they are; a dash where there is no value."""
    if isinstance(value, Integral):
        return str(int(value))
    if math.isnan(value):
        return "\u2013"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# Pictures -------------------------------------------------------------------------------------------------------------


def plots(svgs: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<div>{svg}</div>" for svg in svgs)}</div>' if svgs else ""


def figure(picture: np.ndarray, *, label: str, alt: str) -> str:
    """A picture (H, W, 3) above its label; `alt` is what it says to those who cannot see it."""
    height, width = picture.shape[:2]
    image = f'<img src="{data_uri(picture)}" width="{width}" height="{height}" alt="{_text(alt)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{_text(label)}</figcaption></figure>"


def card(*, phrase_html: str, figures: Sequence[str], lines_html: Sequence[str] = (), tags: str) -> str:
    """One expression: the phrase, pictures side by side, lines, and small print."""
    lines = "".join(lines_html)
    return (
        f'<article class="case"><p class="phrase">\u201c<bdi>{phrase_html}</bdi>\u201d</p>'
        f'<div class="pair">{"".join(figures)}</div>{lines}<p class="tags">{_text(tags)}</p></article>\n'
    )


def gallery(cards: Iterable[str], *, wide: bool = False) -> str:
    return f'<div class="cases{" wide" * wide}">{"".join(cards)}</div>'


def fold(summary: str, html: str, *, unfolded: bool = False) -> str:
    """What opens with a click; browsers decode its pictures only then."""
    return f"<details{' open' * unfolded}><summary>{_text(summary)}</summary>{html}</details>" if html else ""
