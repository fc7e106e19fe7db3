"""The prediction file that `refseg predict` writes as it goes, and that a later run can continue.

The rows of an image are written together. If a run was killed in between, the next one removes the incomplete rows of
the last image and answers it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import HEADER

REMEDY = "use another --out, or --restart to start over"


class Journal:
    """A prediction file that grows image by image. `done` is the set of images in it.

    Args:
        file: The prediction file. A lock file beside it keeps other runs away.
        header: Everything that the answers depend on. A file with another header is refused.
        tasks: The phrases of each image.
        restart: Start over, without the rows that are there.
    """

    def __init__(
        self, file: Path, *, header: dict[str, Any], tasks: Mapping[str, Sequence[str]], restart: bool = False
    ) -> None:
        self.file = file
        header = json.loads(json.dumps(header))  # as it will be read back
        self._lock = FileLock(f"{file}.lock")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"Another run is writing {file}. Wait for it, or use another --out.") from None
        except OSError as error:
            raise UsageError(
                f"Cannot write to the folder {file.parent} ({error.strerror}). Use another --out."
            ) from None
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
        """Add the rows of one image."""
        self._out.write(b"".join(map(_line, rows)))
        self._out.flush()
        self.done.add(rows[0]["image"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows of the file."""
        self._out.flush()
        return (row for _, _, row in _rows(self.file) if HEADER not in row)

    def _open(self, header: dict[str, Any], tasks: Mapping[str, Sequence[str]]) -> None:
        """Note the images that are done, and cut off an incomplete one."""
        # Images in the file, with the start of their rows and their phrases
        end = 0
        images: list[tuple[str, int, list[str]]] = []
        for start, stop, row in _rows(self.file):
            end = stop
            if start == 0:
                written = row[HEADER]
                changed = [key for key in {**header, **written} if written.get(key) != header.get(key)]
                if changed:
                    raise UsageError(f"{self.file} was made with another {', '.join(changed)}. Please {REMEDY}.")
                continue
            if not images or images[-1][0] != row["image"]:
                images.append((row["image"], start, []))
            images[-1][2].append(row["text"])
        if not end:  # the first line is incomplete
            self.file.write_bytes(_line({HEADER: header}))
            return
        # Those that are complete. Only the last one can be incomplete.
        for number, (image, start, texts) in enumerate(images):
            expected = list(tasks.get(image, texts))
            if number + 1 == len(images) and texts == expected[: len(texts)] != expected:
                end = start
            elif texts != expected:
                raise UsageError(f"{self.file} has other phrases of {image}. Please {REMEDY}.")
            else:
                self.done.add(image)
        with self.file.open("r+b") as file:
            file.truncate(end)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _rows(file: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the start and end of each complete line, and its content; the header first."""
    end = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                _ = dict(row[HEADER]) if number == 1 else (row["image"], row["text"])
            except (ValueError, KeyError, TypeError):
                if number == 1:
                    raise UsageError(f"{file} was not made by refseg predict. Please {REMEDY}.") from None
                raise DataError(f"{file}, line {number}: not a row of refseg predict. Please {REMEDY}.") from None
            start, end = end, end + len(line)
            yield start, end, row
