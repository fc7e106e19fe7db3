"""Prediction files: a model's answers, one JSON row per expression. Any code can write them.

    {"expression_id": "7_21", "mask": {"size": [h, w], "counts": "..."}, "no_target_prob": 0.03,
     "boxes": [[x, y, w, h, score], ...], "instances": [{"mask": {...}, "score": 0.9, "words": [0.1, ...]}, ...]}

`expression_id` is required, and so is `mask`, except in rows with boxes or instances. A field that is null counts as
absent. The mask is COCO's RLE, before any rule for "nothing here". `boxes` and `instances` are at the image's size.
`words` is a weight for each word of the expression, written with 4 decimals. Rows may have the fields in NOTES for
people and other programs, which are not read here. The first line may be a header, `{"refseg": {...}}`, that says what
made the file. Files are read and written row by row. `.gz` files are compressed.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from pycocotools import mask as coco_mask

from refseg.datasets.masks import encode, rle_to_json
from refseg.datasets.readers.checks import clean_rle, is_side, sound_rles
from refseg.errors import DataError
from refseg.files import open_to_replace
from refseg.instance import Instance, LazyMask

HEADER = "refseg"
LINES_AT_ONCE = 96  # temporary arrays then stay small enough for the allocator to reuse their memory
T = TypeVar("T")
Line = tuple[int, bytes, Any]  # number, text, JSON value
RLE = {"size", "counts"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one phrase, as the model drew it, before any rule for "nothing here".

    Prediction files and scores use this type. `refseg.inference.results.PhraseAnswer` adds what is known only while the
    model runs.

    Args:
        source: The merged mask: a compressed RLE with counts as bytes, or a mask that is made on request. None from a
            model that predicts only boxes.
        no_target_prob: Probability that the phrase refers to nothing; None from models without that head.
        boxes: (x, y, width, height, score) of each box. None if the model predicts none, unlike an empty list.
        raw_instances: The instances, best first; None from models without instances.
        levels: Number of values of the image that the mask was read from. Not in files.
        absent: Whether the answer stands in for a missing one. Not in files.
    """

    expression_id: str
    source: dict | LazyMask | None
    no_target_prob: float | None = None
    boxes: list[list[float]] | None = None
    raw_instances: Sequence[Instance] | None = None
    levels: int = 2
    absent: bool = False

    @property
    def raw_rle(self) -> dict | None:
        """The merged mask as a compressed RLE, or None if there is no mask."""
        return self.source if self.source is None or isinstance(self.source, dict) else encode(self.source.full)


FIELDS = ("expression_id", "mask", "no_target_prob", "boxes", "instances")
# Allowed in rows, but not read here. `shown`: indices of the instances that `refseg predict` shows.
NOTES = ("image", "text", "nothing_here", "reason", "unknown_words", "shown", "score")


class BadField(ValueError):
    """A problem in a row. Callers add the file and the line."""


# Rows <-> JSON --------------------------------------------------------------------------------------------------------


def row_to_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as the JSON values of a row, without instances that have no pixel."""
    rle = answer.raw_rle
    out: dict[str, Any] = {"expression_id": answer.expression_id, "mask": None if rle is None else rle_to_json(rle)}
    if answer.no_target_prob is not None:
        out["no_target_prob"] = float(answer.no_target_prob)
    if answer.boxes is not None:
        out["boxes"] = [[float(value) for value in box] for box in answer.boxes]
    if answer.raw_instances is not None:
        out["instances"] = []
        for one in answer.raw_instances:
            words = {} if one.words is None else {"words": one.rounded_words}
            if coco_mask.area(one.rle):
                out["instances"].append({"mask": rle_to_json(one.rle), "score": float(one.score), **words})
    return out


def row_from_json(value: Any, sound: Collection[int] = ()) -> Answer:
    """Read a row, and check everything that is later passed to C code.

    Args:
        sound: Ids of RLEs that were checked already (`sound_rles_in`).

    Raises:
        BadField: The value is no valid row.
    """
    if not isinstance(value, dict):
        raise BadField(f"a row must be an object, not {type(value).__name__}")
    if value.keys() == {HEADER}:
        raise BadField("only the first line can be a header. Use merge_parts to join files")
    unknown = [str(name) for name in value if name not in (*FIELDS, *NOTES)]
    if unknown:
        raise BadField(f"unknown field {unknown[0]!r}. Valid fields: {', '.join(FIELDS)}")
    expression_id = id_from_json(value.get("expression_id"), "expression_id")
    mask, boxes, instances = value.get("mask"), value.get("boxes"), value.get("instances")
    if mask is None and boxes is None and instances is None:
        raise BadField("mask is missing. Only rows with boxes or instances need none")
    prob = value.get("no_target_prob")
    if prob is not None and not (is_number(prob) and 0 <= prob <= 1):
        raise BadField(f"no_target_prob must be null or in [0, 1], not {_short(prob)}")
    return Answer(
        expression_id,
        None if mask is None else rle_from_json(mask, "mask", sound),
        None if prob is None else float(prob),
        None if boxes is None else [box_from_json(box, "boxes", SCORED_BOX) for box in _list(boxes, "boxes")],
        None
        if instances is None
        else [_instance(i, one, sound) for i, one in enumerate(_list(instances, "instances"))],
    )


def id_from_json(value: Any, field: str) -> str:
    """Read an id: a string or an integer."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadField(f"{field} must be a string or an integer, not {_short(value)}")


def sound_rles_in(values: Iterable[Any]) -> set[int]:
    """Return the ids (`id`) of those RLEs in rows that `clean_rle` would not change, found in one pass over all."""
    rles = []
    for value in values:
        if isinstance(value, dict):
            instances = value.get("instances")
            parts = [one.get("mask") for one in instances if isinstance(one, dict)] if type(instances) is list else []
            rles += [one for one in (value.get("mask"), *parts) if isinstance(one, dict) and one.keys() == RLE]
    rles = [
        rle
        for rle in rles
        if type(rle["counts"]) is str
        and type(rle["size"]) is list
        and len(rle["size"]) == 2
        and all(is_side(side) for side in rle["size"])
    ]
    if not rles:
        return set()
    counts = [rle["counts"].encode("ascii", "replace") for rle in rles]
    sound = sound_rles(counts, [rle["size"][0] * rle["size"][1] for rle in rles])
    return {id(rle) for rle, is_sound in zip(rles, sound.tolist(), strict=True) if is_sound}


def rle_from_json(value: Any, field: str, sound: Collection[int] = ()) -> dict:
    """Read an RLE, compressed or not, and return it compressed with counts as bytes."""
    if id(value) in sound:
        return {"size": value["size"], "counts": value["counts"].encode()}
    if not isinstance(value, dict):
        raise BadField(f"{field} must be an RLE (an object with size and counts), not {_short(value)}")
    size = value.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise BadField(f"{field}.size must be [height, width], not {_short(size)}")
    try:
        return clean_rle(value, (size[0], size[1]))
    except (ValueError, OverflowError) as error:
        raise BadField(f"{field}: {error}") from None


BOX = ("x", "y", "width", "height")
SCORED_BOX = (*BOX, "score")


def box_from_json(value: Any, field: str, parts: Sequence[str]) -> list[float]:
    """Read a box: as many finite numbers as `parts`, with a non-negative width and height."""
    if isinstance(value, list) and len(value) == len(parts) and all(map(is_number, value)) and min(value[2:4]) >= 0:
        return [float(number) for number in value]
    raise BadField(f"{field}: a box must be [{', '.join(parts)}], not {_short(value)}")


def _instance(index: int, value: Any, sound: Collection[int]) -> Instance:
    place = f"instances[{index}]"
    if not isinstance(value, dict) or set(value) - {"mask", "score", "words"}:
        raise BadField(f"{place} must be an object with mask, score and words, not {_short(value)}")
    words = value.get("words")
    if not is_number(value.get("score")):
        raise BadField(f"{place}.score must be a number, not {_short(value.get('score'))}")
    if words is not None and not (isinstance(words, list) and all(map(is_number, words))):
        raise BadField(f"{place}.words must be numbers, not {_short(words)}")
    mask = rle_from_json(value.get("mask"), f"{place}.mask", sound)
    return Instance(mask, float(value["score"]), None if words is None else [float(word) for word in words])


def _list(value: Any, field: str) -> list:
    if not isinstance(value, list):
        raise BadField(f"{field} must be a list, not {_short(value)}")
    return value


def is_number(value: Any) -> bool:
    """Check for a finite number. JSON reads 1e999 as infinite, and integers may be beyond any float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def _short(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


# Files ----------------------------------------------------------------------------------------------------------------


class PredictionWriter:
    """Writes a prediction file: `with PredictionWriter(file) as writer: writer.write(row)`.

    The file appears, complete, at the end of the block. After an error there is no file.
    """

    def __init__(self, file: str | Path, *, header: dict[str, Any] | None = None) -> None:
        self.file = Path(file)
        self.header = header
        self._stack = ExitStack()

    def __enter__(self) -> PredictionWriter:
        with ExitStack() as stack:
            out: Any = stack.enter_context(open_to_replace(self.file))
            if self.file.suffix == ".gz":  # without name and time, so that the same rows give the same bytes
                out = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=out, mtime=0))
            self._out: BinaryIO = out
            if self.header is not None:
                self.write_line(_dump({HEADER: self.header}))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, row: Answer) -> None:
        self.write_line(_dump(row_to_json(row)))

    def write_line(self, line: bytes) -> None:
        self._out.write(line + b"\n")


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def write_predictions(file: str | Path, rows: Iterable[Answer], *, header: dict[str, Any] | None = None) -> None:
    """Write rows to a prediction file."""
    with PredictionWriter(file, header=header) as writer:
        for row in rows:
            writer.write(row)


class Part(NamedTuple):
    """Whole lines of a file: from byte `start` to byte `end`. The first one is number `line` (from 1)."""

    start: int
    end: int
    line: int


def parts_of(file: str | Path, size: int = 2**22) -> list[Part]:
    """Divide a file into parts of about `size` bytes."""
    parts, start, line = [], 0, 1
    with open(file, "rb") as opened:
        while block := opened.read(size):
            block += opened.readline()
            parts.append(Part(start, start + len(block), line))
            start, line = start + len(block), line + block.count(b"\n")
    return parts


def read_predictions(file: str | Path, part: Part | None = None) -> Iterator[Answer]:
    """Yield the rows of a prediction file, or of a part of it."""
    for lines in in_blocks(_lines(file, part), LINES_AT_ONCE):  # whose RLEs are checked together
        sound = sound_rles_in(value for _, _, value in lines)
        for number, _, value in lines:
            if number == 1 and _header(value) is not None:
                continue
            try:
                yield row_from_json(value, sound)
            except BadField as error:
                raise DataError(f"{file}, line {number}: {error}") from None


def in_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of items, the last one with what remains. Items before an error in the data are yielded first."""
    block: list[T] = []
    try:
        for item in items:
            block.append(item)
            if len(block) == size:
                yield block
                block = []
    except DataError:
        yield block
        raise
    yield block


def read_header(file: str | Path) -> dict[str, Any]:
    """Return the header of a prediction file, or {} if it has none."""
    number, _, value = next(_lines(file), (0, b"", None))
    return (_header(value) if number == 1 else None) or {}


def _header(value: Any) -> dict[str, Any] | None:
    header = value.get(HEADER) if isinstance(value, dict) else None
    return header if isinstance(header, dict) else None


def _lines(file: str | Path, part: Part | None = None) -> Iterator[Line]:
    """Yield the number (from 1), the text and the JSON value of each line that is not empty."""
    start, end, first = part or Part(0, sys.maxsize, 1)
    path = Path(file)
    if not os.path.isfile(path):
        raise DataError(f"no such prediction file: {path}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            opened.seek(start)
            for number, line in enumerate(opened, start=first):
                start += len(line)
                if start > end:
                    break
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not line.strip():
                    continue
                try:
                    value = _DECODER.decode(line.decode())
                except BadField as error:
                    raise DataError(f"{path}, line {number}: {error}") from None
                except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
                    reason = f"not JSON ({error}). Each line must be one object"
                    raise DataError(f"{path}, line {number}: {reason}") from None
                yield number, line, value
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or incomplete ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Python would silently take the last of several values with one key."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadField(f"the key {twice!r} occurs twice in an object. Keep one of its values")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity are Python's extensions


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=unique_keys)


# Parts of several processes -------------------------------------------------------------------------------------------


def part_file(file: str | Path, rank: int) -> Path:
    """Return the file to which the process of a rank writes its rows."""
    return Path(f"{file}.rank{rank}.part")


def merge_parts(parts: Sequence[str | Path], file: str | Path) -> int:
    """Merge the parts, remove them, and return the number of rows.

    Samplers give the same expressions to several processes to make their shares equal. The first row of an id counts.
    """
    headers = [read_header(part) for part in parts]
    if any(header != headers[0] for header in headers):
        raise DataError(f"the parts of {file} have different headers, so they are not from one run")
    seen: set[str] = set()
    with PredictionWriter(file, header=headers[0] or None) as writer:
        for part in parts:
            for number, line, value in _lines(part):
                if number == 1 and _header(value) is not None:
                    continue
                expression_id = str(value["expression_id"])  # the parts are our own files
                if expression_id not in seen:
                    seen.add(expression_id)
                    writer.write_line(line.rstrip(b"\r\n"))
    for part in parts:
        Path(part).unlink()
    return len(seen)
