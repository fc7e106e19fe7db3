"""Reader of SeqTR's layout: one JSON file that maps each split to its entries. C3VG, SimVG, DeRIS and PropVG use it.

Entry: `{"image_id", "width", "height", "expressions": [text, ...], "mask": polygons or RLE, "bbox": [x, y, w, h]}`, in
some files with `id` (of COCO's annotation), `data_source` and `file_name`. Some files differ:

- gRefCOCO's and Ref-ZOM's files have `annotations` instead of `mask`: `{"id", "segmentation", "bbox", "empty", ...}`
  each. None, or only ones that are `empty`, mean "refers to nothing". A list of lists has one for each expression.
- Their `expressions` may be `{"raw": text or [text, ...]}`.
- R-RefCOCO's entries are lists of entries: the expressions of one ref.

Training entries have several expressions of one object; entries of other splits have one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refseg.datasets.readers.checks import (
    BadEntry,
    as_flag,
    as_xywh,
    clean_segmentation,
    image_size,
    is_text,
    load_json,
)
from refseg.errors import ConfigError, DataError
from refseg.paths import data_path
from refseg.records import AnnotatedInstance, Annotations, Expression, Problem, Record

COCO_NAME = "COCO_train2014_{image_id:012d}.jpg"


def read_seqtr(*, file: str | Path, image_name: str | dict[str, str] = COCO_NAME) -> Annotations:
    """Read records of all splits, one per image.

    Expression ids are `<split>_<entry>_<number>`, and the expressions of an entry describe one object.

    Args:
        file: The JSON file.
        image_name: Path of an entry without `file_name` below the image root, with `{image_id}`. A dict has one for
            each `data_source` of a mixed file.
    """
    file = data_path(file)
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}. docs/data.md says where these files come from.")
    content = load_json(file)
    if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
        raise DataError(f"{file}: is not in SeqTR's layout, which maps the name of each split to a list of entries")
    for template in image_name.values() if isinstance(image_name, dict) else [image_name]:
        try:
            template.format(image_id=1)
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            message = f"annotations.image_name: {template!r} cannot be filled in ({error!r}). Use {{image_id}}"
            raise ConfigError(message) from None
    records: dict[str, Record] = {}
    index_of: dict[tuple[str, str], int] = {}  # index of an instance, by image path and annotation id or mask
    problems: list[Problem] = []
    for split, entries in content.items():
        for number, entry in enumerate(entries):
            parts = entry if isinstance(entry, list) else [entry]
            for position, part in enumerate(parts):
                place = f"{file}, {split}[{number}]" + (f"[{position}]" if isinstance(entry, list) else "")
                name = f"{split}_{number}" + (f"_{position}" if isinstance(entry, list) else "")
                try:
                    record, targets = _parse(part, records, image_name)
                except BadEntry as error:
                    problems.append(Problem(place, str(error), split))
                    continue
                records[record.image_path] = record
                tags = {"data_source": part["data_source"]} if isinstance(part.get("data_source"), str) else {}
                for i, (text, instances) in enumerate(targets):
                    for key, instance in instances.items():
                        if (record.image_path, key) not in index_of:
                            index_of[record.image_path, key] = len(record.instances)
                            instance.instance_id = instance.instance_id or f"mask {len(record.instances)}"
                            record.instances.append(instance)
                    referents = tuple(index_of[record.image_path, key] for key in instances)
                    expression = Expression(f"{name}_{i}", text, referents, split, f"{split}_{number}", tags=tags)
                    record.expressions.append(expression)
    return Annotations([record for record in records.values() if record.expressions], problems)


def _parse(
    entry: Any, records: dict[str, Record], image_name: str | dict[str, str]
) -> tuple[Record, list[tuple[str, dict[str, AnnotatedInstance]]]]:
    """Return the record of an entry, and each of its texts with its instances by annotation id or mask."""
    if not isinstance(entry, dict):
        raise BadEntry(f"is a {type(entry).__name__}, not an object")
    path = _image_path(entry, image_name)
    size = image_size(entry)
    record = records.get(path) or Record(path, path, size, [], [])
    if record.size != size:
        raise BadEntry(f"height and width are {list(size)}, but {list(record.size)} in an earlier entry of {path}")
    # The text is a string, a list, or either of them under "raw".
    texts = entry.get("expressions")
    texts = texts.get("raw") if isinstance(texts, dict) else texts
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(is_text(text) for text in texts):
        raise BadEntry(f"expressions is {str(texts)[:60]!r}: it must be a list of texts")
    instances = [_instances(annotations, size) for annotations in _annotations(entry, len(texts))]
    return record, list(zip(texts, instances, strict=True))


def _image_path(entry: dict, image_name: str | dict[str, str]) -> str:
    if isinstance(entry.get("file_name"), str) and entry["file_name"]:
        return entry["file_name"]
    image_id, source = entry.get("image_id"), entry.get("data_source")
    if not isinstance(image_id, int) or isinstance(image_id, bool):
        raise BadEntry(f"image_id is {image_id!r}, not a whole number, and there is no file_name")
    if isinstance(image_name, dict):
        if source not in image_name:
            raise BadEntry(f"data_source is {source!r}, but image_name has only {', '.join(sorted(image_name))}")
        image_name = image_name[source]
    return image_name.format(image_id=image_id)


def _annotations(entry: dict, num_texts: int) -> list[list]:
    """Return the annotations that each expression refers to."""
    annotations = entry.get("annotations")
    if annotations is None:
        if "mask" not in entry:
            raise BadEntry("has neither a mask nor annotations; files with boxes only cannot be used")
        annotation = {"id": entry.get("id"), "segmentation": entry["mask"], "bbox": entry.get("bbox")}
        return [[annotation]] * num_texts
    if not isinstance(annotations, list):
        raise BadEntry(f"annotations is a {type(annotations).__name__}, not a list")
    if not any(isinstance(part, list) for part in annotations):
        return [annotations] * num_texts
    if len(annotations) != num_texts or not all(isinstance(part, list) for part in annotations):
        raise BadEntry(f"annotations has {len(annotations)} parts for {num_texts} expressions")
    return annotations


def _instances(annotations: list, size: tuple[int, int]) -> dict[str, AnnotatedInstance]:
    """Return the instances by annotation id or mask. Annotations that are `empty` stand for no target."""
    instances: dict[str, AnnotatedInstance] = {}
    for annotation in annotations:
        if not isinstance(annotation, dict):
            raise BadEntry(f"an annotation is a {type(annotation).__name__}, not an object")
        annotation_id = annotation.get("id")
        if as_flag("empty", annotation.get("empty", annotation_id == -1)):
            continue
        try:
            segmentation = clean_segmentation(annotation.get("segmentation"), size)
            box = as_xywh(annotation.get("bbox"))
        except (TypeError, ValueError, OverflowError) as error:
            raise BadEntry(str(error)) from None
        is_crowd = as_flag("iscrowd", annotation.get("iscrowd") or 0)
        name = "" if annotation_id is None else str(annotation_id)
        key = name or json.dumps(annotation["segmentation"])  # entries about one object repeat its mask
        instances.setdefault(key, AnnotatedInstance(name, segmentation, box=box, is_crowd=is_crowd))
    return instances
