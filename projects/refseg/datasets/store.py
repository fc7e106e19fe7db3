"""Records as columns: a few flat arrays that can be memory-mapped, so that opening a data set costs nothing and worker
processes share its pages.

Python objects would be copied into every forked worker, because touching one writes its reference count. Here an
object lives only as long as somebody looks at it.

File: a magic line, the length of the header, the header (JSON: where each array lies, and what is not an array), then
the arrays, each at a multiple of 64 bytes. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refseg.files import open_to_replace
from refseg.records import AnnotatedInstance, Annotations, Expression, Problem, Record, Segmentation

MAGIC = b"refseg columns 2\n"
_ALIGN = 64
_POLYGONS, _RLE, _PATH = range(3)
_TEXTS = (
    "image_id", "image_path", "instance_id", "instance_bytes", "expression_id", "object_id", "text",
    "sent", "tags",
)  # fmt: skip


_NUMBERS = (
    "image_size", "image_instances", "image_expressions", "instance_kind", "instance_category", "instance_box",
    "instance_crowd", "instance_rings", "expression_split", "expression_object", "has_sent", "numbers", "referents",
)  # fmt: skip


class Strings:
    """Many strings as one array of UTF-8 bytes and where each begins."""

    def __init__(self, blob: np.ndarray, starts: np.ndarray) -> None:
        self.blob = blob
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def raw(self, index: int) -> bytes:
        return self.blob[self.starts[index] : self.starts[index + 1]].tobytes()

    def __getitem__(self, index: int) -> str:
        return self.raw(index).decode("utf-8", "surrogatepass")


@dataclass
class _Rows:
    """Grows one column of variable-length entries: all values, and where each entry begins."""

    values: list = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    size: int = 0

    def add(self, entry: Sequence | bytes) -> None:
        self.values.append(entry)
        self.size += len(entry)
        self.starts.append(self.size)

    def arrays(self, name: str, dtype: type) -> dict[str, np.ndarray]:
        if dtype is np.uint8:
            values = np.frombuffer(b"".join(self.values), np.uint8)
        else:
            values = np.concatenate([np.asarray(v, dtype) for v in self.values]) if self.values else np.zeros(0, dtype)
        return {name: values, f"{name}.starts": np.asarray(self.starts, np.int64)}


class RecordStore:
    """Records, one per image, built when asked for. Made by `from_annotations` or `open_store`."""

    def __init__(self, arrays: dict[str, np.ndarray], info: dict[str, Any], path: Path | None = None) -> None:
        self.arrays = arrays
        self.info = info
        self.path = path
        self.problems = [Problem(**problem) for problem in info["problems"]]
        self.splits: list[str | None] = info["splits"]
        self.categories: list[str] = info["categories"]
        self._texts = {name: Strings(arrays[name], arrays[f"{name}.starts"]) for name in _TEXTS}

    def __reduce__(self) -> tuple:
        """Workers that are spawned open the file; a store without one is sent whole."""
        if self.path is not None:
            return (open_store, (self.path,))
        return (RecordStore, (self.arrays, self.info))

    # Sizes and columns -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.arrays["image_size"])

    @property
    def num_expressions(self) -> int:
        return len(self.arrays["expression_split"])

    @property
    def num_instances(self) -> int:
        return len(self.arrays["instance_kind"])

    @property
    def expression_starts(self) -> np.ndarray:
        """(images + 1,) index of each image's first expression."""
        return self.arrays["image_expressions"]

    @property
    def instance_starts(self) -> np.ndarray:
        """(images + 1,) index of each image's first instance."""
        return self.arrays["image_instances"]

    @property
    def image_of_expression(self) -> np.ndarray:
        """(expressions,) index of its image."""
        return np.repeat(np.arange(len(self)), np.diff(self.expression_starts))

    @property
    def split_of_expression(self) -> np.ndarray:
        """(expressions,) index into `splits`."""
        return self.arrays["expression_split"]

    @property
    def object_of_expression(self) -> np.ndarray:
        """(expressions,) a number that the expressions of one object of one image share."""
        return self.arrays["expression_object"]

    @property
    def category_of_instance(self) -> np.ndarray:
        """(instances,) index into `categories`, -1 for none."""
        return self.arrays["instance_category"]

    @property
    def is_crowd(self) -> np.ndarray:
        """(instances,) bool"""
        return self.arrays["instance_crowd"]

    def referents(self, expression: int) -> np.ndarray:
        starts = self.arrays["referents.starts"]
        return self.arrays["referents"][starts[expression] : starts[expression + 1]]

    @property
    def num_referents(self) -> np.ndarray:
        """(expressions,)"""
        return np.diff(self.arrays["referents.starts"])

    def image_path(self, image: int) -> str:
        return self._texts["image_path"][image]

    def size(self, image: int) -> tuple[int, int]:
        """(height, width)"""
        height, width = self.arrays["image_size"][image].tolist()
        return height, width

    # Records ---------------------------------------------------------------------------------------------------------

    def record(self, image: int, expressions: Iterable[int] | None = None) -> Record:
        """One image with all its instances, and with the expressions of these (global) indices, or all."""
        first, last = self.instance_starts[image], self.instance_starts[image + 1]
        if expressions is None:
            expressions = range(self.expression_starts[image], self.expression_starts[image + 1])
        return Record(
            image_id=self._texts["image_id"][image],
            image_path=self.image_path(image),
            size=self.size(image),
            instances=[self._instance(i, self.size(image)) for i in range(first, last)],
            expressions=[self.expression(i) for i in expressions],
        )

    def expression(self, index: int) -> Expression:
        text, sent, tags = self._texts["text"][index], self._texts["sent"][index], self._texts["tags"].raw(index)
        return Expression(
            expression_id=self._texts["expression_id"][index],
            text=text,
            referents=tuple(self.referents(index).tolist()),
            split=self.splits[self.split_of_expression[index]],
            object_id=self._texts["object_id"][index],
            sent=sent if self.arrays["has_sent"][index] else None,
            tags=json.loads(tags) if tags else {},
        )

    def _instance(self, index: int, size: tuple[int, int]) -> AnnotatedInstance:
        category, box = self.category_of_instance[index], self.arrays["instance_box"][index]
        return AnnotatedInstance(
            instance_id=self._texts["instance_id"][index],
            segmentation=self._segmentation(index, size),
            category=self.categories[category] if category >= 0 else None,
            box=None if np.isnan(box[0]) else tuple(box.tolist()),
            is_crowd=bool(self.is_crowd[index]),
        )

    def _segmentation(self, index: int, size: tuple[int, int]) -> Segmentation:
        kind = self.arrays["instance_kind"][index]
        if kind == _RLE:
            return {"size": list(size), "counts": self._texts["instance_bytes"].raw(index)}
        if kind == _PATH:
            return self._texts["instance_bytes"][index]
        rings, starts = self.arrays["instance_rings"], self.arrays["numbers.starts"]
        numbers = self.arrays["numbers"]
        return [numbers[starts[ring] : starts[ring + 1]] for ring in range(rings[index], rings[index + 1])]

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, file: str | Path) -> None:
        """Nobody ever sees half a file."""
        places, end = {}, 0
        for name, array in self.arrays.items():
            places[name] = [array.dtype.str, list(array.shape), end]
            end += -(-array.nbytes // _ALIGN) * _ALIGN
        header = json.dumps({"arrays": places, "bytes": end, "info": self.info}).encode()
        with open_to_replace(file) as out:
            out.write(MAGIC + len(header).to_bytes(8, "little") + header)
            out.write(b"\0" * (-out.tell() % _ALIGN))
            for array in self.arrays.values():
                out.write(np.ascontiguousarray(array).tobytes())
                out.write(b"\0" * (-array.nbytes % _ALIGN))


def from_annotations(annotations: Annotations, **info: Any) -> RecordStore:
    """Puts records into columns. `info`: more to keep in the file's header, as JSON values."""
    columns = {name: _Rows() for name in (*_TEXTS, "numbers", "referents")}
    sizes, kinds, boxes, crowds, rings = [], [], [], [], [0]
    category_codes: dict[str, int] = {}
    split_codes: dict[str | None, int] = {}
    categories, splits, objects, has_sent = [], [], [], []
    instance_starts, expression_starts = [0], [0]
    object_codes: dict[tuple[int, str], int] = {}
    for number, record in enumerate(annotations.records):
        columns["image_id"].add(_utf8(record.image_id))
        columns["image_path"].add(_utf8(record.image_path))
        sizes.append(record.size)
        for instance in record.instances:
            columns["instance_id"].add(_utf8(instance.instance_id))
            kind, data, polygons = _pack(instance.segmentation)
            kinds.append(kind)
            columns["instance_bytes"].add(data)
            for polygon in polygons:
                columns["numbers"].add(polygon)
            rings.append(rings[-1] + len(polygons))
            boxes.append(instance.box or (np.nan,) * 4)
            crowds.append(instance.is_crowd)
            known = instance.category is not None
            categories.append(category_codes.setdefault(instance.category, len(category_codes)) if known else -1)
        for expression in record.expressions:
            columns["expression_id"].add(_utf8(expression.expression_id))
            columns["object_id"].add(_utf8(expression.object_id))
            columns["text"].add(_utf8(expression.text))
            columns["sent"].add(_utf8(expression.sent or ""))
            columns["tags"].add(json.dumps(expression.tags).encode() if expression.tags else b"")
            columns["referents"].add(expression.referents)
            has_sent.append(expression.sent is not None)
            splits.append(split_codes.setdefault(expression.split, len(split_codes)))
            objects.append(object_codes.setdefault((number, expression.object_id), len(object_codes)))
        instance_starts.append(len(kinds))
        expression_starts.append(len(splits))
    arrays: dict[str, np.ndarray] = {
        "image_size": np.asarray(sizes, np.int32).reshape(-1, 2),
        "image_instances": np.asarray(instance_starts, np.int64),
        "image_expressions": np.asarray(expression_starts, np.int64),
        "instance_kind": np.asarray(kinds, np.uint8),
        "instance_category": np.asarray(categories, np.int32),
        "instance_box": np.asarray(boxes, np.float64).reshape(-1, 4),
        "instance_crowd": np.asarray(crowds, bool),
        "instance_rings": np.asarray(rings, np.int64),
        "expression_split": np.asarray(splits, np.int16),
        "expression_object": np.asarray(objects, np.int64),
        "has_sent": np.asarray(has_sent, bool),
    }
    for name, rows in columns.items():
        arrays |= rows.arrays(name, {"numbers": np.float64, "referents": np.int32}.get(name, np.uint8))
    known = {"splits": list(split_codes), "categories": list(category_codes)}
    return RecordStore(arrays, {**known, "problems": [asdict(p) for p in annotations.problems], **info})


def _utf8(text: str) -> bytes:
    """Names may hold half characters, which JSON can express; phrases are checked by the readers."""
    return text.encode("utf-8", "surrogatepass")


def _pack(segmentation: Segmentation) -> tuple[int, bytes, Sequence[Sequence[float]]]:
    if isinstance(segmentation, str):
        return _PATH, _utf8(segmentation), ()
    if isinstance(segmentation, dict):
        return _RLE, segmentation["counts"], ()
    return _POLYGONS, b"", segmentation


def read_header(file: str | Path) -> tuple[dict[str, Any], int]:
    """The header and where the arrays begin; ValueError for anything that is not a whole store."""
    with open(file, "rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError("another format")
        length = int.from_bytes(opened.read(8), "little")
        if length > os.path.getsize(file):
            raise ValueError("damaged")
        header = json.loads(opened.read(length))
    start = -(-(len(MAGIC) + 8 + length) // _ALIGN) * _ALIGN
    if os.path.getsize(file) != start + header["bytes"]:
        raise ValueError("not whole")
    return header, start


def open_store(file: str | Path) -> RecordStore:
    """Maps a saved store; nothing but the header is read until it is used."""
    header, start = read_header(file)
    mapped: Any = np.memmap(file, np.uint8, "r", start) if header["bytes"] else np.zeros(0, np.uint8)
    mapped = np.asarray(mapped)  # a plain view of the map: slicing a memmap object is slow
    arrays = {}
    for name, (dtype, shape, place) in header["arrays"].items():
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        arrays[name] = mapped[place : place + size].view(dtype).reshape(shape)
    if not {*_TEXTS, *_NUMBERS} <= set(arrays):
        raise ValueError("damaged")
    return RecordStore(arrays, header["info"], Path(file))
