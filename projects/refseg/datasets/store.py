"""Store records as columns: a few flat arrays that are memory-mapped, so opening is free and workers share the pages.

Python objects would be copied into every forked worker, because touching one writes its reference count. Here records
are built on request.

File format: a magic line, the length of the header, the header (JSON: the place of each array, and other values), then
the arrays, each at a multiple of 64 bytes. Nothing in the file is ever executed.
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


@dataclass
class _Column:
    """A growing column of entries of variable length: all values, and the start of each entry."""

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
    """Records, one per image, built on request. Made by `from_annotations` or `open_store`."""

    def __init__(self, arrays: dict[str, np.ndarray], info: dict[str, Any], path: Path | None = None) -> None:
        self.arrays = arrays
        self.info = info
        self.path = path
        self.problems = [Problem(**problem) for problem in info["problems"]]
        self.splits: list[str | None] = info["splits"]
        self.categories: list[str] = info["categories"]

    def __reduce__(self) -> tuple:
        """Pickle the path for spawned workers, or everything if there is no file."""
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
        """(images + 1,) Index of each image's first expression."""
        return self.arrays["image_expressions"]

    @property
    def instance_starts(self) -> np.ndarray:
        """(images + 1,) Index of each image's first instance."""
        return self.arrays["image_instances"]

    @property
    def image_of_expression(self) -> np.ndarray:
        """(expressions,) Index of the image."""
        return np.repeat(np.arange(len(self)), np.diff(self.expression_starts))

    @property
    def split_of_expression(self) -> np.ndarray:
        """(expressions,) Index into `splits`."""
        return self.arrays["expression_split"]

    @property
    def object_of_expression(self) -> np.ndarray:
        """(expressions,) A number that the expressions of one object share."""
        return self.arrays["expression_object"]

    @property
    def category_of_instance(self) -> np.ndarray:
        """(instances,) Index into `categories`, -1 for none."""
        return self.arrays["instance_category"]

    @property
    def is_crowd(self) -> np.ndarray:
        """(instances,) Whether it is a crowd region."""
        return self.arrays["instance_crowd"]

    def referents(self, expression: int) -> np.ndarray:
        """Return the indices of an expression's referents among the instances of its image."""
        starts = self.arrays["referents.starts"]
        return self.arrays["referents"][starts[expression] : starts[expression + 1]]

    @property
    def num_referents(self) -> np.ndarray:
        """(expressions,) Number of referents."""
        return np.diff(self.arrays["referents.starts"])

    def image_path(self, image: int) -> str:
        """Return the path of an image, relative to the image root."""
        return self._text("image_path", image)

    def size(self, image: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        height, width = self.arrays["image_size"][image].tolist()
        return height, width

    # Records ---------------------------------------------------------------------------------------------------------

    def record(self, image: int, expressions: Iterable[int] | None = None) -> Record:
        """Return one image with all its instances, and its expressions with these indices in the store, or all."""
        first, last = self.instance_starts[image], self.instance_starts[image + 1]
        if expressions is None:
            expressions = range(self.expression_starts[image], self.expression_starts[image + 1])
        return Record(
            image_id=self._text("image_id", image),
            image_path=self.image_path(image),
            size=self.size(image),
            instances=[self._instance(i, self.size(image)) for i in range(first, last)],
            expressions=[self.expression(i) for i in expressions],
        )

    def expression(self, index: int) -> Expression:
        """Return one expression by its index in the store."""
        tags = self._bytes("tags", index)
        return Expression(
            expression_id=self.expression_id(index),
            text=self._text("text", index),
            referents=tuple(self.referents(index).tolist()),
            split=self.splits[self.split_of_expression[index]],
            object_id=self._text("object_id", index),
            sent=self._text("sent", index) if self.arrays["has_sent"][index] else None,
            tags=json.loads(tags) if tags else {},
        )

    def _instance(self, index: int, size: tuple[int, int]) -> AnnotatedInstance:
        category, box = self.category_of_instance[index], self.arrays["instance_box"][index]
        return AnnotatedInstance(
            instance_id=self._text("instance_id", index),
            segmentation=self._segmentation(index, size),
            category=self.categories[category] if category >= 0 else None,
            box=None if np.isnan(box[0]) else tuple(box.tolist()),
            is_crowd=bool(self.is_crowd[index]),
        )

    def expression_id(self, index: int) -> str:
        """Return the id of an expression by its index in the store."""
        return self._text("expression_id", index)

    def _segmentation(self, index: int, size: tuple[int, int]) -> Segmentation:
        kind = self.arrays["instance_kind"][index]
        if kind == _RLE:
            return {"size": list(size), "counts": self._bytes("instance_bytes", index)}
        if kind == _PATH:
            return self._text("instance_bytes", index)
        rings, starts = self.arrays["instance_rings"], self.arrays["numbers.starts"]
        numbers = self.arrays["numbers"]
        return [numbers[starts[ring] : starts[ring + 1]] for ring in range(rings[index], rings[index + 1])]

    def _bytes(self, column: str, index: int) -> bytes:
        starts = self.arrays[f"{column}.starts"]
        return self.arrays[column][starts[index] : starts[index + 1]].tobytes()

    def _text(self, column: str, index: int) -> str:
        return self._bytes(column, index).decode("utf-8", "surrogatepass")

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, file: str | Path) -> None:
        """Write the store to a file, which is complete or not there at all."""
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
    """Convert records to columns.

    Args:
        annotations: Result of a reader.
        **info: Further JSON values for the file's header.
    """
    columns = {name: _Column() for name in (*_TEXTS, "numbers", "referents")}
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
            segmentation = instance.segmentation
            if isinstance(segmentation, str):
                kind, content, polygons = _PATH, _utf8(segmentation), ()
            elif isinstance(segmentation, dict):
                kind, content, polygons = _RLE, segmentation["counts"], ()
            else:
                kind, content, polygons = _POLYGONS, b"", segmentation
            kinds.append(kind)
            columns["instance_bytes"].add(content)
            for polygon in polygons:
                columns["numbers"].add(polygon)
            rings.append(rings[-1] + len(polygons))
            boxes.append(instance.box or (np.nan,) * 4)
            crowds.append(instance.is_crowd)
            has_category = instance.category is not None
            categories.append(category_codes.setdefault(instance.category, len(category_codes)) if has_category else -1)
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
    names = {"splits": list(split_codes), "categories": list(category_codes)}
    return RecordStore(arrays, {**names, "problems": [asdict(p) for p in annotations.problems], **info})


def _utf8(text: str) -> bytes:
    """Encode a name, which may hold half characters as JSON may. Readers check phrases."""
    return text.encode("utf-8", "surrogatepass")


def read_header(file: str | Path) -> tuple[dict[str, Any], int]:
    """Return the header and the start of the arrays, or raise ValueError if the file is not a complete store."""
    with open(file, "rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError("another format")
        length = int.from_bytes(opened.read(8), "little")
        if length > os.path.getsize(file):
            raise ValueError("damaged")
        header = json.loads(opened.read(length))
    start = -(-(len(MAGIC) + 8 + length) // _ALIGN) * _ALIGN
    if os.path.getsize(file) != start + header["bytes"]:
        raise ValueError("incomplete")
    return header, start


def open_store(file: str | Path) -> RecordStore:
    """Map a saved store into memory. Only the header is read at once."""
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
