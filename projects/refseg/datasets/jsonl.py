"""Reader of refseg's JSONL: one row per expression. Pure: knows neither torch nor registries.

Row: `{"expression_id", "image", "size": [h, w], "text", "targets": [polygons | RLE | "mask.png", ...] or null,
"instance_ids": [...], "split", "tags": {...}}`; image, text and targets are required, null or [] targets mean that the
phrase refers to nothing; paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import Expression, Instance, Record

_FIELDS = {"expression_id", "image", "size", "text", "targets", "instance_ids", "split", "tags"}


def read_jsonl(file: str | Path, split: str | None = None) -> list[Record]:
    """Records of one split (all rows where `split` is None), grouped by image in order of first appearance."""
    file = data_path(file)
    if not file.is_file():
        raise DataError(
            f"annotation file not found: {file}. RefShapes is made by "
            f"`refseg data refshapes --preset mini --out {file.parent}`; your own data: see the README."
        )
    records: dict[str, Record] = {}
    known: dict[str, dict[str, int]] = {}  # image -> instance id -> index
    splits = set()
    for place, row in _rows(file):
        splits.add(row.get("split"))
        if split is None or row.get("split") == split:
            _add_row(records, known, row, place, file.parent)
    if split is not None and not records:
        found = ", ".join(sorted(str(name) for name in splits)) or "none: the file is empty"
        raise DataError(f"{file}: no row has split {split!r} (found: {found})")
    return list(records.values())


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{place}: not JSON ({error}). Each line is one object.") from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: a row is an object, not {type(row).__name__}")
            _check_row(row, place)
            yield place, row


def _check_row(row: dict[str, Any], place: str) -> None:
    unknown = sorted(set(row) - _FIELDS)
    if unknown:
        raise DataError(f"{place}: unknown field {unknown[0]!r}; fields are {', '.join(sorted(_FIELDS))}")
    for name, kinds in (("image", str), ("text", str), ("targets", list | None)):
        if name not in row:
            raise DataError(f"{place}: field {name!r} is missing")
        if not isinstance(row[name], kinds):
            raise DataError(f"{place}: field {name!r} has the wrong type {type(row[name]).__name__}")
    if not row["text"].strip():
        raise DataError(f"{place}: the text is empty")
    ids = row.get("instance_ids")
    if ids is not None and len(ids) != len(row["targets"] or []):
        raise DataError(f"{place}: {len(ids)} instance_ids for {len(row['targets'] or [])} targets")
    size = row.get("size")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(isinstance(v, int) and v > 0 for v in size)
    ):
        raise DataError(f"{place}: size must be [height, width], not {size!r}")


def _add_row(
    records: dict[str, Record], known: dict[str, dict[str, int]], row: dict[str, Any], place: str, root: Path
) -> None:
    image = row["image"]
    record = records.get(image)
    if record is None:
        size = tuple(row["size"]) if row.get("size") else _image_size(root / image, place)
        record = records[image] = Record(image, str(root / image), size, [], [])
        known[image] = {}
    targets = row["targets"] or []
    number = len(record.expressions)
    ids = row.get("instance_ids") or [f"{number}:{i}" for i in range(len(targets))]
    referents = []
    for instance_id, segmentation in zip(map(str, ids), targets, strict=True):
        index = known[image].setdefault(instance_id, len(record.instances))
        if index == len(record.instances):
            record.instances.append(Instance(instance_id, _segmentation(segmentation, root, place)))
        referents.append(index)
    record.expressions.append(
        Expression(
            expression_id=str(row.get("expression_id", f"{image}:{number}")),
            text=row["text"],
            referents=tuple(dict.fromkeys(referents)),
            tags=row.get("tags") or {},
        )
    )


def _segmentation(value: Any, root: Path, place: str) -> list | dict | str:
    if isinstance(value, str):
        return str(root / value)
    if isinstance(value, dict) and {"size", "counts"} <= set(value):
        return value
    if isinstance(value, list) and value and all(isinstance(p, list) and len(p) >= 6 for p in value):
        return value
    raise DataError(
        f"{place}: a target is a list of polygons [[x, y, ...], ...] with at least 3 points each, an RLE "
        f'{{"size", "counts"}} or the path of a mask PNG, not {str(value)[:80]!r}'
    )


def _image_size(path: Path, place: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{place}: the row has no size and the image cannot be read: {path} ({error})") from None
