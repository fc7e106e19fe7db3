"""Python-2 pickles of lists and dicts, read without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from refseg.errors import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function: annotation pickles hold lists, dicts, strings and numbers, which need none."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"asks for {module}.{name}, which annotations never need. The file is not what it should be and may be an "
            "attack: get it again from its authors. Nothing of it was run."
        )

    def persistent_load(self, pid: object) -> NoReturn:
        raise DataError(f"refers to an object outside the file ({str(pid)[:40]!r}), which annotations never do")


def load_pickle(file: str | Path) -> Any:
    """The content of a pickle of plain values. Byte strings of Python 2 become str: ASCII, UTF-8 or Latin-1."""
    try:
        try:
            return _load(file, "ASCII")
        except UnicodeDecodeError:  # some string is not ASCII: find out string by string
            return _to_str(_load(file, "bytes"))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except (MemoryError, RecursionError, OSError):
        raise
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise DataError(f"{file}: truncated, or not a pickle ({type(error).__name__}: {error})") from None


def _load(file: str | Path, encoding: str) -> Any:
    with open(file, "rb") as opened:
        return _PlainUnpickler(opened, encoding=encoding).load()


def _to_str(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, dict):
        return {_to_str(key): _to_str(part) for key, part in value.items()}
    return [_to_str(part) for part in value] if isinstance(value, list | tuple) else value
