"""`refseg data merge`: join JSONL files, with one path for each image and without duplicate rows."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refseg.data_tools.conversion import size_of
from refseg.data_tools.rows import Row, check_output, read_rows, same_images, with_base, write_rows
from refseg.datasets.masks import to_rle
from refseg.datasets.readers.checks import plain_text
from refseg.datasets.readers.jsonl import read_target
from refseg.errors import DataError
from refseg.paths import path_to

Keep = Literal["first", "both"]


@dataclass(frozen=True)
class Line:
    """A row with its place and the file of its image, which is the same for equal images."""

    file: str
    number: int
    row: Row
    image: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


def main(args: argparse.Namespace) -> int:
    out = check_output(args.out, args.overwrite)
    merged = Merged(out.parent, args.keep)
    lines = list(read_lines(args.files))
    for line in lines:
        merged.add(line)
    if merged.conflicts:
        first, second = merged.conflicts[0]
        more = f" (and {len(merged.conflicts) - 1:,} more such pairs)" if len(merged.conflicts) > 1 else ""
        raise DataError(
            f"{first} and {second}: {second.row['text']!r} has different targets in {second.image}{more}. Correct one "
            "of the rows, or pass --keep first to drop the later row, or --keep both"
        )
    write_rows(out, merged.rows)
    images = {line.image for line in lines}
    print(f"{out}: {len(merged.rows):,} rows, {len(images):,} images")
    for what, number in merged.numbers.items():
        print(f"{what}: {number:,}")
    splits: dict[str, set] = {}
    for row in merged.rows:
        splits.setdefault(row["image"], set()).add(row.get("split"))
    shared = [image for image, names in splits.items() if len(names) > 1]
    if shared:
        print(
            f"note: {len(shared):,} images are in several splits (first: {shared[0]}). `refseg data split` repairs it"
        )
    return 0


def read_lines(files: Sequence[str]) -> list[Line]:
    """Return the lines of all files. Equal images have the same path: the first one."""
    read = [(file, number, row) for file in files for number, row in read_rows(file).items()]
    paths = [os.path.normpath(os.path.join(os.path.dirname(file), row["image"])) for file, _, row in read]
    first = same_images(paths)
    return [Line(*entry, first[path]) for entry, path in zip(read, paths, strict=True)]


@dataclass
class Merged:
    """Rows merged so far.

    Args:
        base: Folder that paths of the rows are relative to.
        keep: What to do with a row that has the image and the phrase of an earlier one, but other targets.
    """

    base: Path
    keep: Keep | None = None
    rows: list[Row] = field(default_factory=list)
    numbers: Counter = field(default_factory=Counter)
    conflicts: list[tuple[Line, Line]] = field(default_factory=list)
    by_phrase: dict[tuple[str, str], list[Line]] = field(default_factory=dict)
    names: dict[Any, Any] = field(default_factory=dict)  # (kind, ..., id) -> (what it stands for, id to write)

    def add(self, line: Line) -> None:
        """Add a row, unless it is a duplicate or in conflict with an earlier one."""
        same = self.by_phrase.setdefault((line.image, plain_text(line.row["text"])), [])
        if any(has_same_targets(earlier, line) for earlier in same):
            self.numbers["dropped duplicates"] += 1
            return
        if same and self.keep != "both":
            if self.keep == "first":
                self.numbers["dropped conflicts (--keep first)"] += 1
            else:
                self.conflicts.append((same[0], line))
            return
        if same:
            self.numbers["kept conflicts (--keep both)"] += 1
        same.append(line)
        row = with_base(line.row, Path(line.file).parent, self.base)
        if not os.path.isabs(line.row["image"]):
            row["image"] = (path_to(Path(line.image).parent, self.base) / Path(line.image).name).as_posix()
        # Ids that another file uses for something else get a suffix.
        if row.get("instance_ids"):
            targets = [json.dumps(target) for target in row["targets"]]
            ids = zip(row["instance_ids"], targets, strict=True)
            row["instance_ids"] = [
                self._name(("instance", line.image), str(name), mask, line.file) for name, mask in ids
            ]
        if row.get("object_id") is not None:
            row["object_id"] = self._name(("object", line.image), str(row["object_id"]), line.file, line.file)
        if row.get("expression_id") is not None:
            row["expression_id"] = self._name(("expression",), str(row["expression_id"]), str(line), line.file)
        self.rows.append(row)

    def _name(self, scope: tuple, name: str, meaning: str, file: str) -> str:
        """Return the id for something that a file calls `name`. Nothing else in the scope has this id."""
        of_file = (*scope, "in", file, name, meaning)
        renamed = self.names.get(of_file)
        if renamed is None:
            number, renamed = 1, name
            while self.names.setdefault((*scope, renamed), meaning) != meaning:
                number += 1
                renamed = f"{name}#{number}"
            self.names[of_file] = renamed
            self.numbers["renamed ids"] += renamed != name
        return renamed


def has_same_targets(a: Line, b: Line) -> bool:
    """Return whether two rows of an image refer to the same masks, in any order."""
    first, second = a.row["targets"] or [], b.row["targets"] or []
    if len(first) != len(second) or not first:
        return len(first) == len(second)
    first, second = (with_base(line.row, Path(line.file).parent, Path())["targets"] for line in (a, b))
    return first == second or sorted(_masks(a)) == sorted(_masks(b))


def _masks(line: Line) -> Iterator[bytes]:
    try:
        size = tuple(line.row.get("size") or size_of(Path(line.image)))
        for target in line.row["targets"]:
            if isinstance(target, str):
                yield to_rle(os.path.join(os.path.dirname(line.file), target), size)["counts"]
            else:
                yield to_rle(read_target("", target, size).segmentation, size)["counts"]
    except (ValueError, OverflowError) as error:
        raise DataError(f"{line}: {error}. `refseg data check {line.file}` lists all invalid rows") from None
