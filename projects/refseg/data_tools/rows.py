"""Rows of JSONL files for `refseg data split`, `merge`, and `stats`: reading, writing, paths, and equal images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refseg.datasets.readers.checks import BadEntry
from refseg.datasets.readers.jsonl import check_row, parse_row
from refseg.errors import DataError, UsageError
from refseg.files import sha256_of
from refseg.paths import path_to
from refseg.terminal import open_output

Row = dict[str, Any]


def read_rows(file: str | Path) -> dict[int, Row]:
    """Return the rows of a JSONL file by line number.

    Raises:
        DataError: The file cannot be read, or a line is not a valid row.
    """
    rows = {}
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    rows[number] = parse_row(line)
                    check_row(rows[number])
                except BadEntry as error:
                    raise DataError(
                        f"{file}, line {number}: {error}. `refseg data check {file}` lists all invalid rows"
                    ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    if not rows:
        raise DataError(f"{file} has no rows")
    return rows


def check_output(out: str | Path, overwrite: bool) -> Path:
    """Return the path of an output, or raise UsageError if it exists and must not be replaced."""
    if os.path.lexists(out) and not overwrite:
        raise UsageError(f"{out} already exists. Choose another --out, or pass --overwrite")
    return Path(out)


def to_line(row: Row) -> bytes:
    """Return a row as a line. Only halves of characters, which JSON may hold, are escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def write_rows(out: str | Path, rows: Iterable[Row]) -> None:
    """Write a JSONL file completely or not at all."""
    with open_output(out) as file:
        for row in rows:
            file.write(to_line(row))


def with_base(row: Row, old: Path, new: Path) -> Row:
    """Return the row with its paths, which are relative to the folder `old`, relative to the folder `new`."""
    prefix = path_to(Path(old), Path(new))

    def moved(path: str) -> str:
        return path if os.path.isabs(path) else Path(os.path.normpath(prefix / path)).as_posix()

    masks = {
        name: [moved(mask) if isinstance(mask, str) else mask for mask in row[name]]
        for name in ("targets", "ignore")
        if row.get(name)
    }
    return {**row, "image": moved(row["image"]), **masks}


def same_images(paths: Iterable[str]) -> dict[str, str]:
    """Return the first path of equal content for each path of an image. A missing file is equal to no other one.

    Files are equal if all their bytes are. Only files of the same length are read.
    """
    by_length: dict[int, dict[str, list[str]]] = {}  # length -> real path -> paths
    first: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        first[path] = path
        if os.path.isfile(path):
            by_length.setdefault(os.path.getsize(path), {}).setdefault(os.path.realpath(path), []).append(path)
    for files in by_length.values():
        digests: dict[str, str] = {}  # digest -> first path
        for real, names in files.items():
            digest = sha256_of(real) if len(files) > 1 else real
            for name in names:
                first[name] = digests.setdefault(digest, name)
    return first


def image_keys(rows: Sequence[Mapping[str, Any]], base: str | Path) -> list[str]:
    """Return a key of the image for each row. Rows with equal image files have equal keys."""
    paths = [os.path.join(base, row["image"]) for row in rows]
    first = same_images(paths)
    return [first[path] for path in paths]
