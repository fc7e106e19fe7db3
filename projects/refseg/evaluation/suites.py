"""Suites: the sets and splits of a paper's table, its columns, and published rows. `suites.json` holds them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refseg.errors import UsageError
from refseg.terminal import aligned

ESCAPED = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"})  # in LaTeX


@dataclass(frozen=True)
class Column:
    """A column of a table: the data (SET:SPLIT), the protocol, and its metric."""

    data: str
    protocol: str
    metric: str


@dataclass(frozen=True)
class PublishedRow:
    """A published row. `source` names the table that it was taken from. None: not published there."""

    method: str
    backbone: str
    source: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Suite:
    """A table."""

    name: str
    title: str
    columns: tuple[Column, ...]
    published: tuple[PublishedRow, ...]

    @property
    def data(self) -> dict[str, list[str]]:
        """The data sets (SET:SPLIT) with the protocols that score them."""
        found: dict[str, list[str]] = {}
        for column in self.columns:
            protocols = found.setdefault(column.data, [])
            if column.protocol not in protocols:
                protocols.append(column.protocol)
        return found


@cache
def suites() -> Mapping[str, Suite]:
    """Return all suites by name."""
    content = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {
        name: Suite(
            name,
            one["title"],
            tuple(Column(*column) for column in one["columns"]),
            tuple(PublishedRow(**{**row, "values": tuple(row["values"])}) for row in one["published"]),
        )
        for name, one in content.items()
    }


def get_suite(name: str) -> Suite:
    if name not in suites():
        close = difflib.get_close_matches(name, suites(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"valid suites: {', '.join(suites())}"
        raise UsageError(f"unknown suite {name!r}; {hint}")
    return suites()[name]


def table_rows(suite: Suite, own: Mapping[str, Sequence[float | None]]) -> list[list[str]]:
    """Return the cells of a table: two lines of headers, the published rows, and own rows by name."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        ["method", "backbone", *(column.data for column in suite.columns), "source"],
        ["", "", *(column.metric for column in suite.columns), ""],
    ]
    rows += [[row.method, row.backbone, *map(cell, row.values), row.source] for row in suite.published]
    return rows + [[name, "", *map(cell, values), "measured"] for name, values in own.items()]


def to_text(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(aligned(rows)) + "\n"


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def to_latex(rows: Sequence[Sequence[str]]) -> str:
    body = [" & ".join(cell.translate(ESCAPED) for cell in row) + r" \\" for row in rows]
    body.insert(2, r"\midrule")
    columns = "ll" + "r" * (len(rows[0]) - 3) + "l"
    start, end = rf"\begin{{tabular}}{{{columns}}}" + "\n\\toprule", "\\bottomrule\n\\end{tabular}"
    return "\n".join([start, *body, end]) + "\n"


def to_json(suite: Suite, own: Mapping[str, Sequence[float | None]]) -> str:
    content: dict[str, Any] = {
        "suite": suite.name,
        "columns": [vars(column) for column in suite.columns],
        "published": [vars(row) for row in suite.published],
        "measured": {name: list(values) for name, values in own.items()},
    }
    return json.dumps(content, indent=2) + "\n"
