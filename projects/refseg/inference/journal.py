"""The file that `refseg predict` writes as it goes: a prediction file with notes, to which a later run can add.

An image's rows are written together. What a kill left of the last image's rows is removed when the file is opened
again, and the image is answered anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import HEADER

REMEDY = "take another --out, or --restart to begin anew"


class Journal:
    """`tasks`: the phrases of each image. `header`: what the answers depend on; a file with another one is refused.

    `done`: the images that the file has. `write` adds the rows of one more.
    """

    def __init__(
        self, file: Path, *, header: dict[str, Any], tasks: Mapping[str, Sequence[str]], restart: bool = False
    ) -> None:
        self.file = file
        header = json.loads(json.dumps(header))  # as it will be read
        self._lock = FileLock(f"{file}.lock")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another run is writing {file}") from None
        except OSError as error:
            raise UsageError(f"{file.parent} is no folder to write to ({error.strerror}): take another --out") from None
        try:
            self.done: set[str] = set()
            if file.exists() and not restart:
                self._open(header, tasks)
            else:
                file.write_bytes(_line({HEADER: header}))
            self._out = file.open("ab")
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: Any) -> None:
        self._out.close()
        self._unlock()

    def _unlock(self) -> None:
        Path(f"{self.file}.lock").unlink(missing_ok=True)
        self._lock.release()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._out.write(b"".join(map(_line, rows)))
        self._out.flush()
        self.done.add(rows[0]["image"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows of the file."""
        self._out.flush()
        return (row for _, _, row in _rows(self.file) if HEADER not in row)

    def _open(self, header: dict[str, Any], tasks: Mapping[str, Sequence[str]]) -> None:
        """Notes what is done, and cuts off what is not whole."""
        written = _header(self.file)
        if written is None:  # the very first line is not whole
            self.file.write_bytes(_line({HEADER: header}))
            return
        changed = [key for key in {**header, **written} if written.get(key) != header.get(key)]
        if changed:
            raise UsageError(f"{self.file} was made with another {', '.join(changed)}: {REMEDY}")
        end, images = _images(self.file)
        for number, (image, start, texts) in enumerate(images):
            expected = list(tasks.get(image, texts))
            if number + 1 == len(images) and texts == expected[: len(texts)] != expected:
                end = start
            elif texts != expected:
                raise UsageError(f"{self.file} has other phrases of {image}: {REMEDY}")
            else:
                self.done.add(image)
        with self.file.open("r+b") as file:
            file.truncate(end)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _header(file: Path) -> dict[str, Any] | None:
    with file.open("rb") as opened:
        line = opened.readline()
    if not line.endswith(b"\n"):
        return None
    try:
        return dict(json.loads(line)[HEADER])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file} was not made by refseg predict: {REMEDY}") from None


def _images(file: Path) -> tuple[int, list[tuple[str, int, list[str]]]]:
    """Where the last whole line ends; of each image where its rows begin, and its phrases."""
    images: list[tuple[str, int, list[str]]] = []
    whole = 0
    for start, end, row in _rows(file):
        whole = end
        if HEADER in row:
            continue
        if not images or images[-1][0] != row["image"]:
            images.append((row["image"], start, []))
        images[-1][2].append(row["text"])
    return whole, images


def _rows(file: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Where a whole line begins and ends, and what it says; the header first."""
    end = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                if number > 1:
                    row["image"], row["text"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{file}, line {number}: no row of refseg predict; {REMEDY}") from None
            start, end = end, end + len(line)
            yield start, end, row
