"""Reader of refseg's JSONL: one row per expression, which is what users write for their own data.

Row: `{"expression_id", "image", "size": [h, w], "text", "targets": [polygons | RLE | "mask.png", ...] or null,
"instance_ids": [...], "object_id", "split", "tags": {...}}`; image, text and targets are required, null or [] targets
mean that the phrase refers to nothing; paths are relative to the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refseg.datasets.readers.segmentations import clean_segmentation
from refseg.datasets.readers.values import is_side, is_text
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import UNKNOWN, AnnotatedInstance, Annotations, Expression, Problem, Record, Segmentation

_KINDS: dict[str, Any] = {
    "image": str,
    "text": str,
    "targets": list | None,
    "size": list | None,
    "instance_ids": list | None,
    "object_id": str | int | None,
    "split": str | None,
    "tags": dict | None,
    "expression_id": str | int | None,
}
_REQUIRED = ("image", "text", "targets")


class _BadRow(ValueError):
    """Why one row cannot be used."""


def read_jsonl(*, file: str | Path) -> Annotations:
    """Records grouped by image in order of first appearance. Instances with the same id in an image are one, and
    expressions of the same `object_id`, or, where they have none, with the same referents, describe one object."""
    file = data_path(file)
    if not file.is_file():
        raise DataError(
            f"annotation file not found: {file}. RefShapes is made by "
            f"`refseg data refshapes --preset mini --out {file.parent}`"
            if file.name == "refshapes.jsonl"
            else f"annotation file not found: {file}. docs/data.md says how to write one."
        )
    records: dict[str, Record] = {}
    known: dict[str, dict[str, int]] = {}  # image -> instance id -> index
    ids: set[str] = set()
    problems: list[Problem] = []
    opened: list[str] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row: Any = None
            try:
                row = _parse(line)
                _add_row(records, known, ids, row, file.parent, opened)
            except _BadRow as error:
                split = (row.get("split") or "") if isinstance(row, dict) else UNKNOWN
                problems.append(Problem(f"{file}, line {number}", str(error), str(split) or UNKNOWN))
    return Annotations(list(records.values()), problems, opened)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or brackets without end
        raise _BadRow(f"not JSON ({error}). Each line is one object.") from None
    if not isinstance(row, dict):
        raise _BadRow(f"a row is an object, not {type(row).__name__}")
    return row


def _check_row(row: dict[str, Any]) -> None:
    unknown = sorted(set(row) - set(_KINDS))
    if unknown:
        raise _BadRow(f"unknown field {unknown[0]!r}; fields are {', '.join(sorted(_KINDS))}")
    for name in _REQUIRED:
        if name not in row:
            raise _BadRow(f"field {name!r} is missing")
    for name, value in row.items():
        if not isinstance(value, _KINDS[name]):
            raise _BadRow(f"field {name!r} has the wrong type {type(value).__name__}")
    if not is_text(row["text"]):
        raise _BadRow("the text is empty, or holds half a character")
    for name in ("image", "expression_id", "object_id", "split"):
        if isinstance(row.get(name), str) and not is_text(row[name]):
            raise _BadRow(f"field {name!r} is empty, or holds half a character")
    ids, targets = row.get("instance_ids"), row["targets"] or []
    if ids is not None and len(ids) != len(targets):
        raise _BadRow(f"{len(ids)} instance_ids for {len(targets)} targets")
    size = row.get("size")
    if size is not None and not (len(size) == 2 and all(is_side(side) for side in size)):
        raise _BadRow(f"size must be [height, width], not {size!r}")


def _add_row(
    records: dict[str, Record],
    known: dict[str, dict[str, int]],
    ids: set[str],
    row: dict[str, Any],
    root: Path,
    opened: list[str],
) -> None:
    _check_row(row)
    image, targets = row["image"], row["targets"] or []
    record = records.get(image)
    if record is None:
        if not row.get("size"):
            opened.append(str(root / image))
        record = Record(image, image, tuple(row.get("size") or _image_size(root / image)), [], [])
    elif row.get("size") and tuple(row["size"]) != record.size:
        raise _BadRow(f"size is {row['size']}, but an earlier row of {image} says {list(record.size)}")
    number = len(record.expressions)
    names = [str(name) for name in row.get("instance_ids") or [f"{number}:{i}" for i in range(len(targets))]]
    expression_id = str(row["expression_id"]) if row.get("expression_id") is not None else f"{image}:{number}"
    if expression_id in ids:
        raise _BadRow(f"expression_id {expression_id!r} is taken by an earlier row")
    indices = known.get(image, {})
    known_masks = {name: record.instances[index].segmentation for name, index in indices.items()}
    instances = []
    for name, target in zip(names, targets, strict=True):
        segmentation = _segmentation(target, record.size)
        if name not in known_masks:
            known_masks[name] = segmentation
            instances.append(AnnotatedInstance(name, segmentation))
        elif known_masks[name] != segmentation:
            raise _BadRow(f"instance_id {name!r} stands for two different masks of {image}")

    # The row is good: only now is anything added.
    ids.add(expression_id)
    records[image], known[image] = record, indices
    for instance in instances:
        indices[instance.instance_id] = len(record.instances)
        record.instances.append(instance)
    referents = tuple(dict.fromkeys(indices[name] for name in names))
    record.expressions.append(
        Expression(
            expression_id=expression_id,
            text=row["text"],
            referents=referents,
            split=row.get("split"),
            object_id=_object_id(row.get("object_id"), referents, expression_id),
            tags=row.get("tags") or {},
        )
    )


def _object_id(given: str | int | None, referents: tuple[int, ...], expression_id: str) -> str:
    if given is not None:
        return str(given)
    return f"of {','.join(map(str, sorted(referents))) or expression_id}"


def _segmentation(value: Any, size: tuple[int, int]) -> Segmentation:
    if isinstance(value, str):
        return value
    try:
        return clean_segmentation(value, size)
    except (ValueError, OverflowError) as error:
        raise _BadRow(
            f"a target is a list of polygons [[x, y, ...], ...] with at least 3 points each, an RLE "
            f'{{"size", "counts"}} or the path of a mask image; here: {error}'
        ) from None


def _image_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _BadRow(f"the row has no size and the image cannot be read: {path} ({error})") from None
