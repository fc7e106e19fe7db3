"""What commands write, to files and to terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from refseg.errors import UsageError
from refseg.files import open_to_replace


def printable(text: str) -> str:
    """Text from files for a terminal: control characters, which could move the cursor, become the replacement sign."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


@contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """A file that the user asked for, written whole or not at all."""
    try:
        with open_to_replace(path) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from None


def write_whole(path: str | Path, content: str) -> None:
    with open_output(path) as file:
        file.write(content.encode())
