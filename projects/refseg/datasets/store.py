"""Store records as columns: a few flat arrays that are memory-mapped, so opening is free and workers share the pages.

Python objects would be copied into every forked worker, because touching one writes its reference count. Here records
are built on request.

File format: a magic line, the length of the header, the header (JSON: the place of each array, and other values), then
the arrays, each at a multiple of 64 bytes. Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refseg.files import open_to_replace
from refseg.records import AnnotatedInstance, Annotations, Expression, Problem, Record, Segmentation

MAGIC = b"refseg columns 2\n"
_ALIGN = 64
_POLYGONS, _RLE, _PATH, _BOX = range(4)
# Columns of numbers, and their types.
_NUMBERS: dict[str, Any] = {
    "image_size": np.int32,
    "image_instances": np.int64,
    "image_expressions": np.int64,
    "instance_kind": np.uint8,
    "instance_category": np.int32,
    "instance_box": np.float64,
    "instance_crowd": bool,
    "instance_rings": np.int64,
    "expression_split": np.int16,
    "expression_object": np.int64,
    "has_sent": bool,
}
# Columns of bytes, numbers or indices of any length. Column `<name>.starts` says where each entry starts.
_SEQUENCES: dict[str, Any] = {
    **dict.fromkeys(("image_id", "image_path", "instance_id", "instance_bytes", "expression_id"), np.uint8),
    **dict.fromkeys(("object_id", "text", "sent", "tags"), np.uint8),
    "numbers": np.float64,
    "referents": np.int32,
    "ignored": np.int32,
}


class RecordStore:
    """Records, one per image, built on request. Made by `from_annotations` or `open_store`.

    Attributes:
        expression_starts: (images + 1,) index of each image's first expression.
        instance_starts: (images + 1,) index of each image's first instance.
        split_of_expression: (expressions,) index into `splits`.
        object_of_expression: (expressions,) a number that the expressions of one object share.
        category_of_instance: (instances,) index into `categories`, -1 for none.
        is_crowd: (instances,) whether it is a crowd region.
        has_mask: (instances,) whether it has a mask, and not only a box.
    """

    def __init__(self, arrays: dict[str, np.ndarray], info: dict[str, Any], path: Path | None = None) -> None:
        self.arrays = arrays
        self.info = info
        self.path = path
        self.problems = [Problem(**problem) for problem in info["problems"]]
        self.splits: list[str | None] = info["splits"]
        self.categories: list[str] = info["categories"]
        self.expression_starts = arrays["image_expressions"]
        self.instance_starts = arrays["image_instances"]
        self.split_of_expression = arrays["expression_split"]
        self.object_of_expression = arrays["expression_object"]
        self.category_of_instance = arrays["instance_category"]
        self.is_crowd = arrays["instance_crowd"]
        self.has_mask = arrays["instance_kind"] != _BOX
        self.num_expressions, self.num_instances = len(self.split_of_expression), len(self.is_crowd)
        # Single values are read through memory views, which is several times as fast as through numpy.
        self._views: dict[str, Any] = {name: array.reshape(-1).data for name, array in arrays.items()}

    def __reduce__(self) -> tuple:
        """Pickle the path for spawned workers, or everything if there is no file."""
        return (RecordStore, (self.arrays, self.info)) if self.path is None else (open_store, (self.path,))

    def __len__(self) -> int:
        return len(self.arrays["image_size"])

    @property
    def image_of_expression(self) -> np.ndarray:
        """(expressions,) Index of the image."""
        return np.repeat(np.arange(len(self)), np.diff(self.expression_starts))

    @property
    def num_referents(self) -> np.ndarray:
        """(expressions,) Number of referents."""
        return np.diff(self.arrays["referents.starts"])

    def referents(self, expression: int) -> np.ndarray:
        """Return the indices of an expression's referents among the instances of its image."""
        return self._entry("referents", expression)

    def image_path(self, image: int) -> str:
        """Return the path of an image, relative to the image root."""
        return self._text("image_path", image)

    def size(self, image: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        sizes = self._views["image_size"]
        return sizes[2 * image], sizes[2 * image + 1]

    def record(self, image: int, expressions: Iterable[int] | None = None) -> Record:
        """Return one image with all its instances, and its expressions with these indices in the store, or all."""
        if expressions is None:
            expressions = range(self.expression_starts[image], self.expression_starts[image + 1])
        instances = range(self.instance_starts[image], self.instance_starts[image + 1])
        return Record(
            image_id=self._text("image_id", image),
            image_path=self.image_path(image),
            size=self.size(image),
            instances=[self._instance(i, self.size(image)) for i in instances],
            expressions=[self.expression(i) for i in expressions],
        )

    def expression(self, index: int) -> Expression:
        """Return one expression by its index in the store."""
        tags = self._text("tags", index)
        return Expression(
            expression_id=self.expression_id(index),
            text=self._text("text", index),
            referents=tuple(self._view("referents", index)),
            split=self.splits[self._views["expression_split"][index]],
            object_id=self._text("object_id", index),
            sent=self._text("sent", index) if self._views["has_sent"][index] else None,
            tags=json.loads(tags) if tags else {},
            ignored=tuple(self._view("ignored", index)),
        )

    def expression_id(self, index: int) -> str:
        """Return the id of an expression by its index in the store."""
        return self._text("expression_id", index)

    def _instance(self, index: int, size: tuple[int, int]) -> AnnotatedInstance:
        kind, rings = self._views["instance_kind"][index], self._views["instance_rings"]
        segmentation: Segmentation
        if kind == _RLE:
            segmentation = {"size": list(size), "counts": bytes(self._view("instance_bytes", index))}
        elif kind == _PATH:
            segmentation = self._text("instance_bytes", index)
        else:
            segmentation = [self._entry("numbers", ring) for ring in range(rings[index], rings[index + 1])]
        category, box = self._views["instance_category"][index], self._views["instance_box"][4 * index : 4 * index + 4]
        return AnnotatedInstance(
            instance_id=self._text("instance_id", index),
            segmentation=segmentation,
            category=self.categories[category] if category >= 0 else None,
            box=None if math.isnan(box[0]) else tuple(box),
            is_crowd=self._views["instance_crowd"][index],
            has_mask=kind != _BOX,
        )

    def _entry(self, column: str, index: int) -> np.ndarray:
        starts = self._views[f"{column}.starts"]
        return self.arrays[column][starts[index] : starts[index + 1]]

    def _view(self, column: str, index: int) -> memoryview:
        starts = self._views[f"{column}.starts"]
        return self._views[column][starts[index] : starts[index + 1]]

    def _text(self, column: str, index: int) -> str:
        return str(self._view(column, index), "utf-8", "surrogatepass")

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
    columns: dict[str, list] = {name: [] for name in (*_NUMBERS, *_SEQUENCES)}
    category_codes: dict[str | None, int] = {None: -1}
    split_codes: dict[str | None, int] = {}
    object_codes: dict[tuple[int, str], int] = {}

    def add(**entries: Any) -> None:
        for name, entry in entries.items():
            columns[name].append(entry)

    add(image_instances=0, image_expressions=0, instance_rings=0)
    for number, record in enumerate(annotations.records):
        for instance in record.instances:
            segmentation = instance.segmentation
            if isinstance(segmentation, str):
                add(instance_kind=_PATH, instance_bytes=_utf8(segmentation))
            elif isinstance(segmentation, dict):
                add(instance_kind=_RLE, instance_bytes=segmentation["counts"])
            else:
                add(instance_kind=_POLYGONS if instance.has_mask else _BOX, instance_bytes=b"")
                columns["numbers"] += segmentation
            add(
                instance_id=_utf8(instance.instance_id),
                instance_rings=len(columns["numbers"]),
                instance_box=instance.box or (np.nan,) * 4,
                instance_crowd=instance.is_crowd,
                instance_category=category_codes.setdefault(instance.category, len(category_codes) - 1),
            )
        for expression in record.expressions:
            add(
                expression_id=_utf8(expression.expression_id),
                object_id=_utf8(expression.object_id),
                text=_utf8(expression.text),
                sent=_utf8(expression.sent or ""),
                has_sent=expression.sent is not None,
                tags=json.dumps(expression.tags).encode() if expression.tags else b"",
                referents=expression.referents,
                ignored=expression.ignored,
                expression_split=split_codes.setdefault(expression.split, len(split_codes)),
                expression_object=object_codes.setdefault((number, expression.object_id), len(object_codes)),
            )
        add(
            image_id=_utf8(record.image_id),
            image_path=_utf8(record.image_path),
            image_size=record.size,
            image_instances=len(columns["instance_id"]),
            image_expressions=len(columns["expression_id"]),
        )
    arrays = {name: np.asarray(columns[name], dtype) for name, dtype in _NUMBERS.items()}
    arrays["image_size"].shape = (-1, 2)
    arrays["instance_box"].shape = (-1, 4)
    for name, dtype in _SEQUENCES.items():
        entries = columns[name]
        if dtype is np.uint8:
            arrays[name] = np.frombuffer(b"".join(entries), np.uint8)
        else:
            arrays[name] = np.concatenate([np.zeros(0, dtype), *(np.asarray(entry, dtype) for entry in entries)])
        arrays[f"{name}.starts"] = np.cumsum([0, *map(len, entries)], dtype=np.int64)
    names = {"splits": list(split_codes), "categories": [name for name in category_codes if name is not None]}
    return RecordStore(arrays, {**names, "problems": [asdict(p) for p in annotations.problems], **info})


def _utf8(text: str) -> bytes:
    """Encode a name, which may hold half characters as JSON may. Readers check phrases."""
    return text.encode("utf-8", "surrogatepass")


def open_store(file: str | Path) -> RecordStore:
    """Map a saved store into memory. Only the header is read at once.

    Raises:
        ValueError: The file is not a complete store.
    """
    size = os.path.getsize(file)
    with open(file, "rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError("another format")
        length = int.from_bytes(opened.read(8), "little")
        if length > size:
            raise ValueError("damaged")
        header = json.loads(opened.read(length))
        start = -(-opened.tell() // _ALIGN) * _ALIGN
    if size != start + header["bytes"]:
        raise ValueError("incomplete")
    mapped: Any = np.memmap(file, np.uint8, "r", start) if header["bytes"] else np.zeros(0, np.uint8)
    mapped = np.asarray(mapped)  # a plain view of the map: slicing a memmap object is slow
    arrays = {}
    for name, (dtype, shape, place) in header["arrays"].items():
        num_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        arrays[name] = mapped[place : place + num_bytes].view(dtype).reshape(shape)
    if not {*_NUMBERS, *_SEQUENCES} <= set(arrays):
        raise ValueError("damaged")
    return RecordStore(arrays, header["info"], Path(file))
