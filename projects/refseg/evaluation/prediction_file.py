"""Prediction files: what a model said, one JSON row per expression, for any code to write.

    {"expression_id": "7_21", "mask": {"size": [h, w], "counts": "..."}, "no_target_prob": 0.03,
     "boxes": [[x, y, w, h, score], ...], "instances": [{"mask": {...}, "score": 0.9, "words": [0.1, ...]}, ...]}

`expression_id` is required, and `mask` but for protocols of boxes; null is the same as nothing. The mask is COCO's RLE,
raw: before any rule for "nothing here". `boxes` and `instances` are of the image's size. `words`: a weight for each
word of the expression. `image`, `text`, `nothing_here`, `reason`, `unknown_words`, `shown` (indices of the instances
that `refseg predict` shows) and `score` are for people and other programs: they may stand in a row, and are not read
here. The first line may be a header, `{"refseg": {...}}`: what the file was made with. Files
are read and written row by row; `.gz` is compressed.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from refseg.datasets.readers.checks import clean_rle
from refseg.errors import DataError
from refseg.files import open_to_replace

HEADER = "refseg"


@dataclass(frozen=True, slots=True)
class PredictedInstance:
    """One of several objects that an expression means. `words`: (number of words,) or None."""

    mask: dict
    score: float
    words: list[float] | None = None


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """The answer to one expression.

    `mask`: compressed RLE, counts as bytes; None from a model of boxes alone. `boxes`: (x, y, width, height, score) of
    each; None where the model gives none, which is something else than no box. Not in files: `levels`, the number of
    values of the image that the mask was read from, and `absent`, whether the row stands in for a missing one.
    """

    expression_id: str
    mask: dict | None
    no_target_prob: float | None = None
    boxes: list[list[float]] | None = None
    instances: list[PredictedInstance] | None = None
    levels: int = 2
    absent: bool = False


FIELDS = ("expression_id", "mask", "no_target_prob", "boxes", "instances")
NOTES = (
    "image",
    "text",
    "nothing_here",
    "reason",
    "unknown_words",
    "shown",
    "score",
)  # allowed in rows, and not read here


class BadField(ValueError):
    """What is wrong with a row; where it stands is added by who knows it."""


# Rows <-> JSON --------------------------------------------------------------------------------------------------------


def row_to_json(row: PredictionRow) -> dict[str, Any]:
    mask = None if row.mask is None else rle_to_json(row.mask)
    out: dict[str, Any] = {"expression_id": row.expression_id, "mask": mask}
    if row.no_target_prob is not None:
        out["no_target_prob"] = float(row.no_target_prob)
    if row.boxes is not None:
        out["boxes"] = [[float(value) for value in box] for box in row.boxes]
    if row.instances is not None:
        out["instances"] = [_instance_to_json(instance) for instance in row.instances]
    return out


def _instance_to_json(instance: PredictedInstance) -> dict[str, Any]:
    out = {"mask": rle_to_json(instance.mask), "score": float(instance.score)}
    return out if instance.words is None else {**out, "words": [float(weight) for weight in instance.words]}


def rle_to_json(rle: dict) -> dict[str, Any]:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def row_from_json(value: Any) -> PredictionRow:
    """Checked, so that nothing surprises C code later; BadField says what is wrong."""
    if not isinstance(value, dict):
        raise BadField(f"a row is an object, not {type(value).__name__}")
    if value.keys() == {HEADER}:
        raise BadField("a header belongs in the first line; were files put together? (merge_parts does that)")
    unknown = [str(name) for name in value if name not in (*FIELDS, *NOTES)]
    if unknown:
        raise BadField(f"unknown field {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    expression_id = id_from_json(value.get("expression_id"), "expression_id")
    mask, boxes, instances = value.get("mask"), value.get("boxes"), value.get("instances")
    if mask is None and boxes is None and instances is None:
        raise BadField("mask is missing; only a row with boxes or instances needs none")
    return PredictionRow(
        expression_id,
        None if mask is None else rle_from_json(mask, "mask"),
        _probability(value.get("no_target_prob")),
        None if boxes is None else [box_from_json(box, "boxes", SCORED_BOX) for box in _list(boxes, "boxes")],
        None if instances is None else [_instance(i, one) for i, one in enumerate(_list(instances, "instances"))],
    )


def id_from_json(value: Any, field: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadField(f"{field} is a string or a whole number, not {_short(value)}")


def rle_from_json(value: Any, field: str) -> dict:
    """Compressed, counts as bytes; of either kind."""
    if not isinstance(value, dict):
        raise BadField(f"{field} is an RLE, an object with size and counts, not {_short(value)}")
    size = value.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise BadField(f"{field}.size is [height, width], not {_short(size)}")
    try:
        return clean_rle(value, (size[0], size[1]))
    except (ValueError, OverflowError) as error:
        raise BadField(f"{field}: {error}") from None


def _probability(value: Any) -> float | None:
    if value is None or (is_number(value) and 0 <= value <= 1):
        return None if value is None else float(value)
    raise BadField(f"no_target_prob is null or in [0, 1], not {_short(value)}")


BOX = ("x", "y", "width", "height")
SCORED_BOX = (*BOX, "score")


def box_from_json(value: Any, field: str, parts: Sequence[str]) -> list[float]:
    """Finite numbers, as many as `parts`; width and height are not negative."""
    if isinstance(value, list) and len(value) == len(parts) and all(map(is_number, value)) and min(value[2:4]) >= 0:
        return [float(number) for number in value]
    raise BadField(f"{field}: a box is [{', '.join(parts)}], not {_short(value)}")


def _instance(index: int, value: Any) -> PredictedInstance:
    place = f"instances[{index}]"
    if not isinstance(value, dict) or set(value) - {"mask", "score", "words"}:
        raise BadField(f"{place} is an object with mask, score and words, not {_short(value)}")
    words = value.get("words")
    if not is_number(value.get("score")):
        raise BadField(f"{place}.score is a number, not {_short(value.get('score'))}")
    if words is not None and not (isinstance(words, list) and all(map(is_number, words))):
        raise BadField(f"{place}.words are numbers, not {_short(words)}")
    mask = rle_from_json(value.get("mask"), f"{place}.mask")
    return PredictedInstance(mask, float(value["score"]), None if words is None else [float(word) for word in words])


def _list(value: Any, field: str) -> list:
    if not isinstance(value, list):
        raise BadField(f"{field} is a list, not {_short(value)}")
    return value


def is_number(value: Any) -> bool:
    """Finite: 1e999 is read as infinite, and whole numbers may be beyond any float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def _short(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


# Files ----------------------------------------------------------------------------------------------------------------


class PredictionWriter:
    """`with PredictionWriter(file) as writer: writer.write(row)`. The file is there, whole, once the block is left;
    when it is left by an error, nothing is."""

    def __init__(self, file: str | Path, *, header: dict[str, Any] | None = None) -> None:
        self.file = Path(file)
        self.header = header
        self._stack = ExitStack()

    def __enter__(self) -> PredictionWriter:
        with ExitStack() as stack:
            out: Any = stack.enter_context(open_to_replace(self.file))
            if self.file.suffix == ".gz":  # without name and time: the same rows give the same bytes
                out = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=out, mtime=0))
            self._out: BinaryIO = out
            if self.header is not None:
                self.write_line(_dump({HEADER: self.header}))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, row: PredictionRow) -> None:
        self.write_line(_dump(row_to_json(row)))

    def write_line(self, line: bytes) -> None:
        self._out.write(line + b"\n")


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def write_predictions(file: str | Path, rows: Iterable[PredictionRow], *, header: dict[str, Any] | None = None) -> None:
    with PredictionWriter(file, header=header) as writer:
        for row in rows:
            writer.write(row)


def read_predictions(file: str | Path) -> Iterator[PredictionRow]:
    for number, line in _lines(file):
        try:
            value = _parse(line)
            if number > 1 or _header(value) is None:
                yield row_from_json(value)
        except BadField as error:
            raise DataError(f"{file}, line {number}: {error}") from None


def read_header(file: str | Path) -> dict[str, Any]:
    """What the file was made with, as far as it says; {} where it says nothing."""
    for number, line in _lines(file):
        try:
            return (_header(_parse(line)) if number == 1 else None) or {}
        except BadField as error:
            raise DataError(f"{file}, line {number}: {error}") from None
    return {}


def _lines(file: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1; empty ones are left out."""
    path = Path(file)
    if not os.path.isfile(path):
        raise DataError(f"no such prediction file: {path}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or not whole ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python would silently take the last of several values with one key."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadField(f"the key {twice!r} occurs twice in an object. Keep one of its values")
    return value


# NaN and Infinity are Python's own.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=unique_keys)


def _parse(line: bytes) -> Any:
    try:
        return _DECODER.decode(line.decode())
    except BadField:
        raise
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise BadField(f"not JSON ({error}). Each line is one object.") from None


def _header(value: Any) -> dict[str, Any] | None:
    found = value.get(HEADER) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else None


# Parts of several processes -------------------------------------------------------------------------------------------


def part_file(file: str | Path, rank: int) -> Path:
    """Where the process of this rank writes its rows."""
    return Path(f"{file}.rank{rank}.part")


def merge_parts(parts: Sequence[str | Path], file: str | Path) -> int:
    """Puts the parts together and removes them; how many rows there are. Of rows with the same id, which samplers give
    to several processes so that all have equally many, the first stays."""
    headers = [read_header(part) for part in parts]
    if any(header != headers[0] for header in headers):
        raise DataError(f"the parts of {file} have different headers: they are not of one run")
    seen: set[str] = set()
    with PredictionWriter(file, header=headers[0] or None) as writer:
        for part in parts:
            for number, line in _lines(part):
                try:
                    value = _parse(line)
                    if number == 1 and _header(value) is not None:
                        continue
                    expression_id = id_from_json(value.get("expression_id"), "expression_id")
                except (BadField, AttributeError) as error:
                    raise DataError(f"{part}, line {number}: {error}") from None
                if expression_id not in seen:
                    seen.add(expression_id)
                    writer.write_line(line.rstrip(b"\r\n"))
    for part in parts:
        Path(part).unlink()
    return len(seen)
