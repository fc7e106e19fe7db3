"""Readers of annotation files. They are pure functions that return records and know neither torch nor registries.

A reader raises `DataError` for a file that it cannot use at all. Otherwise it returns the records that it could read
and a `Problem` for each entry that it skipped. The caller decides how many problems are too many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refseg.datasets.readers.jsonl import read_jsonl
from refseg.datasets.readers.refer import read_refer
from refseg.datasets.readers.saco import read_saco
from refseg.datasets.readers.seqtr import read_seqtr
from refseg.records import Annotations

__all__ = ["READERS", "Reader", "read_jsonl", "read_refer", "read_saco", "read_seqtr"]


@dataclass(frozen=True)
class Reader:
    """A reader, and the names of its arguments that are paths of files."""

    read: Callable[..., Annotations]
    files: tuple[str, ...]


READERS = {
    "jsonl": Reader(read_jsonl, ("file",)),
    "refer": Reader(read_refer, ("refs", "instances")),
    "saco": Reader(read_saco, ("file",)),
    "seqtr": Reader(read_seqtr, ("file",)),
}
