"""Output of commands: tables and text for terminals, and files that are written atomically."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from refseg.errors import UsageError
from refseg.files import open_to_replace


def printable(text: str) -> str:
    """Replace control characters in text from files, which could move the cursor of a terminal."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


@contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """Open an output file of a command, which is written completely or not at all."""
    try:
        with open_to_replace(path) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from None


def write_whole(path: str | Path, content: str) -> None:
    with open_output(path) as file:
        file.write(content.encode())


def aligned(rows: Sequence[Sequence[str]], *, right: bool = True) -> list[str]:
    """Return lines with aligned columns. All but the first and the last column hold right-aligned numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) if rows else 0)]
    lines = []
    for row in rows:
        last = len(row) - 1
        cells = [
            cell.rjust(width) if right and 0 < column < last else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


OK, WARN, FAIL = "OK", "WARN", "FAIL"


@dataclass(frozen=True)
class Check:
    """One row of a table of checks. FAIL means that refseg cannot work; `remedy` is a command or a change to make."""

    name: str
    status: str
    text: str
    remedy: str = ""


def check_table(checks: Sequence[Check]) -> str:
    """Return a table with one check per row. A remedy has its own line, without wrapping, so that it can be copied."""
    width = max(40, shutil.get_terminal_size((110, 24)).columns)
    names = max(len(check.name) for check in checks)
    whole: dict[str, Any] = dict(break_long_words=False, break_on_hyphens=False)  # paths can be copied
    lines = []
    for check in checks:
        head = f"{check.status:4}  {check.name:{names}}  "
        below = " " * len(head)
        lines += textwrap.wrap(head + check.text, width, subsequent_indent=below, **whole) or [head]
        lines += [f"{below}-> {check.remedy}"] if check.remedy else []
    return "\n".join(lines)
