"""Reader of refseg's JSONL: one row per expression. Users write their own data in this format.

Row: `{"expression_id", "image", "size": [h, w], "text", "targets": [polygons | RLE | "mask.png" | {"box"}, ...] or
null, "instance_ids": [...], "ignore": [regions], "object_id", "split", "tags": {...}}`. `image`, `text` and `targets`
are required. The phrase refers to nothing if `targets` is null or []. Pixels of `ignore` do not count in scores. Paths
are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg.datasets.readers.checks import BadEntry, as_xywh, clean_segmentation, is_side, is_text
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import UNKNOWN, AnnotatedInstance, Annotations, Expression, Problem, Record, Segmentation

_TYPES: dict[str, Any] = {
    "image": str,
    "text": str,
    "targets": list | None,
    "size": list | None,
    "instance_ids": list | None,
    "ignore": list | None,
    "object_id": str | int | None,
    "split": str | None,
    "tags": dict | None,
    "expression_id": str | int | None,
}


def read_jsonl(*, file: str | Path) -> Annotations:
    """Read records, grouped by image in order of first appearance.

    Instances of an image with the same id are one. Expressions describe one object if they have the same `object_id`
    or, without one, the same referents.

    Args:
        file: The JSONL file.
    """
    file = data_path(file)
    if not file.is_file():
        raise DataError(
            f"annotation file not found: {file}. Make RefShapes with "
            f"`refseg data refshapes --preset mini --out {file.parent}`"
            if file.name in ("refshapes.jsonl", "paraphrases.jsonl")
            else f"annotation file not found: {file}. docs/data.md explains how to write one."
        )
    content = _Content(file.parent)
    problems: list[Problem] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row: Any = None
            try:
                row = parse_row(line)
                check_row(row)
                content.add(row)
            except BadEntry as error:
                split = (row.get("split") or "") if isinstance(row, dict) else UNKNOWN
                problems.append(Problem(f"{file}, line {number}", str(error), str(split) or UNKNOWN))
    return Annotations(list(content.records.values()), problems, content.opened)


def parse_row(line: bytes) -> dict[str, Any]:
    """Parse one line of a JSONL file, or raise BadEntry."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or endless brackets
        raise BadEntry(f"not JSON ({error}). Each line is one object") from None
    if not isinstance(row, dict):
        raise BadEntry(f"a row is an object, not {type(row).__name__}")
    return row


def check_row(row: dict[str, Any]) -> None:
    """Raise BadEntry unless the row has valid fields. Its targets are not checked."""
    unknown = sorted(set(row) - set(_TYPES))
    if unknown:
        raise BadEntry(f"unknown field {unknown[0]!r}. Valid fields: {', '.join(sorted(_TYPES))}")
    missing = [name for name in ("image", "text", "targets") if name not in row]
    if missing:
        raise BadEntry(f"field {missing[0]!r} is missing")
    for name, value in row.items():
        if not isinstance(value, _TYPES[name]):
            raise BadEntry(f"field {name!r} has the wrong type {type(value).__name__}")
    for name in ("text", "image", "expression_id", "object_id", "split"):
        if isinstance(row.get(name), str) and not is_text(row[name]):
            raise BadEntry(f"field {name!r} is empty, or holds half a character")
    ids, targets = row.get("instance_ids"), row["targets"] or []
    if ids is not None and len(ids) != len(targets):
        raise BadEntry(f"{len(ids)} instance_ids for {len(targets)} targets")
    size = row.get("size")
    if size is not None and not (len(size) == 2 and all(is_side(side) for side in size)):
        raise BadEntry(f"size must be [height, width], not {size!r}")


@dataclass
class _Content:
    """Records made from the rows so far.

    `index_of`: index of an instance in its record, by image and instance id. `opened`: images that were opened to get
    their size.
    """

    root: Path
    records: dict[str, Record] = field(default_factory=dict)
    index_of: dict[tuple[str, str], int] = field(default_factory=dict)
    expression_ids: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Add one row. A row that is bad in any part adds nothing."""
        image, targets, size = row["image"], row["targets"] or [], row.get("size")
        record = self.records.get(image)
        if record is None:
            record = Record(image, image, tuple(size) if size else self._size_of_file(image), [], [])
        elif size and tuple(size) != record.size:
            raise BadEntry(f"size is {size}, but an earlier row of {image} says {list(record.size)}")
        number = len(record.expressions)
        expression_id = f"{image}:{number}" if row.get("expression_id") is None else str(row["expression_id"])
        if expression_id in self.expression_ids:
            raise BadEntry(f"expression_id {expression_id!r} is taken by an earlier row")
        # Instances by their ids. An id that occurs twice must have the same mask.
        ids = [str(name) for name in row.get("instance_ids") or [f"{number}:{i}" for i in range(len(targets))]]
        new: dict[str, AnnotatedInstance] = {}
        for instance_id, target in zip(ids, targets, strict=True):
            instance = read_target(instance_id, target, record.size)
            index = self.index_of.get((image, instance_id))
            known = new.get(instance_id) if index is None else record.instances[index]
            if known is None:
                new[instance_id] = instance
            elif (known.segmentation, known.has_mask) != (instance.segmentation, instance.has_mask):
                raise BadEntry(f"instance_id {instance_id!r} stands for two different masks of {image}")

        # Regions that do not count: equal ones are one
        ignored_ids = []
        for region in row.get("ignore") or []:
            segmentation = _segmentation(region, record.size)
            ignored_ids.append(f"ignored {hashlib.sha256(repr(segmentation).encode()).hexdigest()[:16]}")
            if (image, ignored_ids[-1]) not in self.index_of:
                new[ignored_ids[-1]] = AnnotatedInstance(ignored_ids[-1], segmentation)

        # The row is good: add everything.
        self.records[image] = record
        self.expression_ids.add(expression_id)
        for instance_id, instance in new.items():
            self.index_of[image, instance_id] = len(record.instances)
            record.instances.append(instance)
        referents = tuple(dict.fromkeys(self.index_of[image, instance_id] for instance_id in ids))
        object_id = row.get("object_id")
        if object_id is None:
            object_id = f"of {','.join(map(str, sorted(referents))) or expression_id}"
        split, tags = row.get("split"), row.get("tags") or {}
        ignored = tuple(dict.fromkeys(self.index_of[image, instance_id] for instance_id in ignored_ids))
        record.expressions.append(
            Expression(expression_id, row["text"], referents, split, str(object_id), tags=tags, ignored=ignored)
        )

    def _size_of_file(self, image: str) -> tuple[int, int]:
        from refseg.datasets.images import open_image  # OpenCV is needed only here

        path = str(self.root / image)
        self.opened.append(path)
        try:
            with open_image(path) as header:
                return header.height, header.width
        except DataError as error:
            raise BadEntry(f"the row has no size, and its {error}") from None


def read_target(instance_id: str, value: Any, size: tuple[int, int]) -> AnnotatedInstance:
    """Return a target of a row, in an image of this size, or raise BadEntry."""
    if not isinstance(value, dict) or "box" not in value:
        return AnnotatedInstance(instance_id, _segmentation(value, size))
    box = as_xywh(value["box"])
    if box is None or not (box[2] > 0 and box[3] > 0):
        raise BadEntry(f"a box is [x, y, width, height] with an area, not {value['box']!r}")
    x, y, width, height = box
    rectangle = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    return AnnotatedInstance(instance_id, _segmentation(rectangle, size), box=box, has_mask=False)


def _segmentation(value: Any, size: tuple[int, int]) -> Segmentation:
    if isinstance(value, str):
        return value
    try:
        return clean_segmentation(value, size)
    except (ValueError, OverflowError) as error:
        raise BadEntry(
            f"a target is a list of polygons [[x, y, ...], ...] with at least 3 points each, an RLE "
            f'{{"size", "counts"}}, the path of a mask image, or {{"box": [x, y, width, height]}}; here: {error}'
        ) from None
