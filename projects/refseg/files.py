"""Atomic file writes, and hashes of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_to_replace(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing, and sync and rename it at the end.

    A kill at any moment leaves either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a kill at any moment leaves either the old file or the new one."""
    with open_to_replace(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def folder_to_replace(out: str | Path) -> Iterator[Path]:
    """Make a folder that takes the place of `out` at the end. If the block fails, `out` stays as it was."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary, out.name)
        folder.mkdir()
        yield folder
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
