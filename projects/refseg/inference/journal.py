"""The file of answers that `refseg predict` and `refseg label` write as they go, and that a later run can continue.

The rows of an image are written together. If a run was killed in between, the next one removes the incomplete rows of
the last image and answers it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import HEADER
from refseg.files import write_atomically

REMEDY = "use another --out, or --restart to start over"


class Journal:
    """A file of answers that grows image by image. `done` is the set of images in it.

    Args:
        file: The file. A lock file beside it keeps other runs away.
        header: Everything that the answers depend on. A file with another header is refused.
        tasks: The phrases of each image.
        restart: Start over, without the rows that are there.
        remedy: What users can do about a file that cannot be continued.
    """

    def __init__(
        self,
        file: Path,
        *,
        header: dict[str, Any],
        tasks: Mapping[str, Sequence[str]],
        restart: bool = False,
        remedy: str = REMEDY,
    ) -> None:
        self.file = file
        self.remedy = remedy
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
                # Note the images that are done, and cut off an incomplete one
                spans, end = complete_images(file, header=header, tasks=tasks, remedy=remedy)
                self.done.update(spans)
                with file.open("r+b") as opened:
                    opened.truncate(end)
            if not file.exists() or not file.stat().st_size or restart:
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
        return (row for _, _, row in _rows(self.file, self.remedy) if HEADER not in row)


Span = tuple[Path, int, int]  # a file of answers, and the start and end of an image's rows in it


@dataclass(frozen=True, slots=True)
class Shards:
    """The answers of several processes, each of which answers every n-th image into a journal of its own.

    The process that finds all images answered, or not readable, merges them. An earlier run may have had another
    number of processes.

    Args:
        folder: Folder of the journals.
        header: See `Journal`; so for `tasks` and `remedy`.
        rank: Number of this process.
        world_size: Number of processes.
        merged: A file of an earlier merge, whose rows count too.
    """

    folder: Path
    header: dict[str, Any]
    tasks: Mapping[str, Sequence[str]]
    remedy: str = REMEDY
    rank: int = 0
    world_size: int = 1
    merged: Path | None = None

    def answered(self) -> dict[str, Span]:
        """Return the rows of each answered image."""
        files = sorted(self.folder.glob("*.jsonl"))
        if self.merged is not None and self.merged.is_file():
            files.insert(0, self.merged)
        done: dict[str, Span] = {}
        for file in files:
            spans, _ = complete_images(file, header=self.header, tasks=self.tasks, remedy=self.remedy)
            for image, span in spans.items():
                done.setdefault(image, (file, *span))
        return done

    @contextmanager
    def open(self, failures: Mapping[str, str]) -> Iterator[Journal]:
        """Open this process's journal. At the end, note the images that it could not read, and why."""
        file = self.folder / f"{self.rank}.failures.json"
        for other in self.folder.glob("*.failures.json"):  # of an earlier run with more processes
            if int(other.name.partition(".")[0]) >= self.world_size:
                other.unlink(missing_ok=True)
        with Journal(
            self.folder / f"{self.rank}.jsonl", header=self.header, tasks=self.tasks, remedy=self.remedy
        ) as journal:
            file.unlink(missing_ok=True)  # images that could not be read are tried again
            yield journal
        write_atomically(file, json.dumps(failures))

    @contextmanager
    def all_done(self) -> Iterator[tuple[dict[str, Span], dict[str, str]] | None]:
        """Give the rows of each answered image and the failures of the others, or None if images are left.

        The last process to finish finds all images. Of two that finish together, one waits for the other.
        """
        with FileLock(self.folder / "merge.lock"):
            done = self.answered()
            noted: dict[str, str] = {}
            for file in sorted(self.folder.glob("*.failures.json")):
                noted |= json.loads(file.read_bytes())
            failures = {image: noted[image] for image in self.tasks if image in noted and image not in done}
            left = any(image not in done and image not in failures for image in self.tasks)
            yield None if left else (done, failures)


def lines_of(span: Span) -> list[bytes]:
    """Read the rows of one image as lines of JSON."""
    file, start, end = span
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(end - start).splitlines(keepends=True)


def complete_images(
    file: Path, *, header: Mapping[str, Any], tasks: Mapping[str, Sequence[str]], remedy: str = REMEDY
) -> tuple[dict[str, tuple[int, int]], int]:
    """Find the images of a file of answers whose rows are complete.

    Args:
        file: The file.
        header: See `Journal`; so for `tasks` and `remedy`.

    Returns:
        The start and end of each image's rows in bytes, and the end of the complete part of the file.

    Raises:
        UsageError: The file has another header, or other phrases of an image.
    """
    header = json.loads(json.dumps(header))  # as it is read back
    # Images in the file, with the start of their rows and their phrases
    end = 0
    images: list[tuple[str, int, list[str]]] = []
    stops: dict[str, int] = {}
    for start, stop, row in _rows(file, remedy):
        if start == 0:
            written = row[HEADER]
            changed = [key for key in {**header, **written} if written.get(key) != header.get(key)]
            if changed:
                raise UsageError(f"{file} was made with another {', '.join(changed)}. Please {remedy}.")
            end = stop
            continue
        if not images or images[-1][0] != row["image"]:
            images.append((row["image"], start, []))
        images[-1][2].append(row["text"])
        stops[row["image"]] = stop
    # Those that are complete. Only the last one can be incomplete.
    spans = {}
    for number, (image, start, texts) in enumerate(images):
        expected = list(tasks.get(image, texts))
        if number + 1 == len(images) and texts == expected[: len(texts)] != expected:
            break
        if texts != expected:
            raise UsageError(f"{file} has other phrases of {image}. Please {remedy}.")
        end = stops[image]
        spans[image] = (start, end)
    return spans, end


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _rows(file: Path, remedy: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
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
                    raise UsageError(f"{file} was not made by refseg. Please {remedy}.") from None
                raise DataError(f"{file}, line {number}: not a row of refseg. Please {remedy}.") from None
            start, end = end, end + len(line)
            yield start, end, row
