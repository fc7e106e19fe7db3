"""Reader of SA-Co's format: COCO's layout in which an entry of `images` is an image with a phrase (`text_input`).

A phrase without annotations refers to nothing. Boxes, in shares of the image's size, are not read: masks give them too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refseg.datasets.masks import rle_to_json
from refseg.datasets.readers.checks import BadEntry, as_flag, clean_segmentation, image_size, is_text, load_json
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import AnnotatedInstance, Annotations, Expression, Problem, Record


def read_saco(*, file: str | Path) -> Annotations:
    """Read records, one per image, and an expression per phrase with the id of its entry.

    Phrases of an image that share a mask refer to the same instance. Entries that were not annotated exhaustively
    (`is_instance_exhaustive`) are left out, as in SA-Co's evaluation.

    Args:
        file: The JSON file.
    """
    file = data_path(file)
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}. docs/data.md says where these files come from.")
    content = load_json(file)
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file} has no list {name!r}: it is not a file in SA-Co's format")
    problems: list[Problem] = []

    # Annotations by the entry that they belong to
    of_pair: dict[int | str, list[dict]] = {}
    for number, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict) and isinstance(annotation.get("image_id"), int | str):
            of_pair.setdefault(annotation["image_id"], []).append(annotation)
        else:
            problems.append(Problem(f"{file}, annotations[{number}]", "has no image_id"))

    # Entries
    records: dict[str, Record] = {}
    known: dict[tuple[str, str, bool], int] = {}  # index of an instance, by image, mask, and crowd
    seen: set[int | str] = set()
    for number, pair in enumerate(content["images"]):
        try:
            pair_id, exhaustive = _check_pair(pair, seen)
            annotations = of_pair.pop(pair_id, [])
            name, size = pair["file_name"], image_size(pair)
            record = records.get(name) or Record(name, name, size, [], [])
            if record.size != size:
                raise BadEntry(f"is {size[0]} x {size[1]}, but an earlier entry of {name} is not")
            regions = [
                (clean_segmentation(one.get("segmentation"), size), as_flag("iscrowd", one.get("iscrowd", 0)))
                for one in annotations
            ]
        except (BadEntry, ValueError, OverflowError) as error:
            problems.append(Problem(f"{file}, images[{number}]", str(error)))
            continue
        if not exhaustive:
            reason = "not annotated exhaustively (is_instance_exhaustive), so it is left out"
            problems.append(Problem(f"{file}, images[{number}]", reason, is_notice=True))
            continue
        records[name] = record
        referents = []
        for mask, is_crowd in regions:
            key = (name, json.dumps(rle_to_json(mask) if isinstance(mask, dict) else mask), is_crowd)
            if key not in known:
                known[key] = len(record.instances)
                record.instances.append(AnnotatedInstance(str(known[key]), mask, is_crowd=is_crowd))
            referents.append(known[key])
        expression = Expression(str(pair_id), pair["text_input"].strip(), tuple(dict.fromkeys(referents)))
        record.expressions.append(expression)
    for image_id in of_pair:
        if image_id not in seen:
            problems.append(Problem(f"{file}, annotations", f"image_id {image_id!r} is the id of no entry of images"))
    return Annotations(list(records.values()), problems)


def _check_pair(pair: Any, seen: set[int | str]) -> tuple[int | str, bool]:
    """Return the id of an entry, and whether it was annotated exhaustively. Its id is then `seen`."""
    image_size(pair)
    pair_id = pair.get("id")
    if not isinstance(pair_id, int | str) or isinstance(pair_id, bool):
        raise BadEntry("has no id")
    if pair_id in seen:
        raise BadEntry(f"has the id {pair_id!r} of an earlier entry")
    seen.add(pair_id)
    for field in ("file_name", "text_input"):
        if not is_text(pair.get(field)):
            raise BadEntry(f"has no {field}")
    return pair_id, bool(pair.get("is_instance_exhaustive", True))
