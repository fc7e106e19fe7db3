"""Safe reader of pickles of plain values, written by Python 2 or 3.

Scripts that rewrite annotation files with Python 3 often store numpy scalars, numpy arrays and OrderedDicts. Stand-ins
in this module read these as numbers, lists and dicts, so nothing else is ever called with values from the file. All
other classes and functions are refused.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refseg.errors import DataError

_PLAIN_TYPES = re.compile(r"[biuf]\d{1,2}|[US]\d{1,6}")  # bools, numbers and strings


class _Dtype:
    """Stand-in for `numpy.dtype`: its code and byte order."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code = _as_str(code)
        self.order = "|"
        if not _PLAIN_TYPES.fullmatch(self.code):
            raise DataError(f"holds numpy values of type {self.code!r}, which annotations never need")

    def __setstate__(self, state: tuple) -> None:
        self.order = _as_str(state[1])

    def values(self, content: str | bytes, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> Any:
        """Return numbers or strings in nested lists."""
        if isinstance(content, str):  # bytes written by Python 2
            content = content.encode("latin-1")
        values = np.frombuffer(content, np.dtype(self.order + self.code))
        return _plain(values.reshape(shape, order=order).tolist())


class _Array(list):
    """Stand-in for a numpy array, filled when its state arrives."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, in_fortran_order, content = state
        self.extend(dtype.values(content, shape, "F" if in_fortran_order else "C"))


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """Stand-in for `codecs.encode`, by which protocol 2 stores bytes."""
    if _as_str(encoding) not in ("latin1", "latin-1"):
        raise DataError(f"asks for bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # empty bytes in protocol 2
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _STAND_INS[f"{_core}.multiarray", "scalar"] = lambda dtype, content: dtype.values(content, ())
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = lambda kind, shape, code: _Array()
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = lambda content, dtype, *shape: dtype.values(content, *shape)


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins above and no other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            stand_in = _STAND_INS[module, name]
            return lambda *arguments: stand_in(*arguments)  # a new one each time: the file may set its attributes
        raise DataError(
            f"asks for {module}.{name}, which annotations never need. The file is damaged or an attack; nothing in it "
            "was run. Get it again from its authors. If you wrote it yourself, use only lists, dicts, strings and "
            "numbers, or JSON (json.dump)."
        )

    def persistent_load(self, pid: object) -> Any:
        raise DataError(f"refers to an object outside the file ({str(pid)[:40]!r}), which annotations never do")


def load_pickle(file: str | Path) -> Any:
    """Return the content of a pickle as plain values. Byte strings become str (ASCII, UTF-8 or Latin-1)."""
    try:
        content = Path(file).read_bytes()
        try:
            return _PlainUnpickler(io.BytesIO(content), encoding="ASCII").load()
        except UnicodeDecodeError:  # some string is not ASCII: decode string by string
            return _plain(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load())
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except (MemoryError, RecursionError, OSError):
        raise
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise DataError(f"{file}: truncated, or not a pickle ({type(error).__name__}: {error})") from None


def _as_str(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _as_str(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
