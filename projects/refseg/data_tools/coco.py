"""COCO's format, also as CVAT writes it.

Phrases are in the field `phrases` of an annotation: a text or a list of texts. In a file from CVAT, they are in the
attribute `phrases`, one per line. Phrases that refer to nothing are in the field `negative_phrases` of an image.

Crowd regions are no targets, because they stand for many objects. They still count as present, so no row says that
their category is absent. A row whose category also has a crowd region in the image is tagged `crowd`. CVAT marks every
mask of its brush as a crowd (`iscrowd` 1), and these are targets. So are regions with their own phrases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from refseg.data_tools.conversion import (
    NEGATIVES,
    OBJECT,
    LabeledImage,
    Skipped,
    check_folder,
    negatives_of,
    phrases_by_instance,
    phrases_in,
    to_json,
    to_target,
)
from refseg.datasets.masks import to_rle
from refseg.datasets.readers.checks import is_side, is_text
from refseg.errors import DataError
from refseg.records import AnnotatedInstance, Record
from refseg.terminal import write_whole

FIELDS = ("phrases", "attributes.phrases")  # places of phrases, unless the user names another one


def read(
    file: Path, content: Any, images: Path, skipped: Skipped, text_field: str | None = None
) -> tuple[list[LabeledImage], dict[str, str]]:
    """Return the labels of all images in the order of the file, and the names of categories with their ids.

    Args:
        file: Annotation file.
        content: Its content.
        images: Folder that its file names are relative to.
        skipped: Collects what cannot be used.
        text_field: Field of an annotation with its phrases. `attributes.caption` is the field `caption` of
            `attributes`.
    """
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file} has no list {name!r}: it is not an annotation file in COCO's layout")
    check_folder(images)
    # Names of categories by id
    names: dict[int | str, str] = {}
    for number, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or not is_id(category.get("id")):
            skipped.add("categories without an id", f"categories[{number}]")
        elif not is_text(category.get("name")):
            skipped.add("categories without a name", f"id {category['id']}")
        else:
            names[category["id"]] = category["name"].strip()
    of_image = by_image(content["annotations"], skipped)
    # Images with their annotations
    labeled: list[LabeledImage] = []
    seen: set[Any] = set()
    for number, image in enumerate(content["images"]):
        problem = problem_of_image(image, images)
        if problem is None and image["id"] in seen:
            problem = ("images with the id of an earlier one", f"images[{number}]")
        if problem is not None:
            skipped.add(problem[0], problem[1] or f"images[{number}]")
            continue
        seen.add(image["id"])
        size, path = (image["height"], image["width"]), str(images / image["file_name"])
        labels = LabeledImage(str(image["id"]), path, size, [], [])
        ids: set[str] = set()
        for annotation in of_image.pop(image["id"], []):
            _add(labels, annotation, names, ids, text_field, skipped)
        labels.add_negatives(phrases_in(image.get(NEGATIVES)))
        labeled.append(labels)
    for image_id, entries in of_image.items():
        for annotation in entries:
            skipped.add("annotations of skipped images", f"id {annotation.get('id')} of image {image_id}")
    return labeled, {name: str(key) for key, name in names.items()}


def by_image(annotations: Sequence[Any], skipped: Skipped) -> dict[Any, list[dict]]:
    """Return the annotations by the id of their image."""
    of_image: dict[Any, list[dict]] = {}
    for number, annotation in enumerate(annotations):
        if isinstance(annotation, dict) and is_id(annotation.get("image_id")):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        else:
            skipped.add("annotations without image_id", f"annotations[{number}]")
    return of_image


def problem_of_image(image: Any, images: Path) -> tuple[str, str] | None:
    """Return why an entry of `images` cannot be used, with the file if that is the reason."""
    if not isinstance(image, dict) or not is_id(image.get("id")):
        return "images without an id", ""
    if not is_text(image.get("file_name")):
        return "images without file_name", ""
    if not (is_side(image.get("height")) and is_side(image.get("width"))):
        return "images without height and width", ""
    path = images / image["file_name"]
    return None if os.path.isfile(path) else ("images whose file is not there", str(path))


def is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _add(
    labels: LabeledImage, annotation: dict, names: dict, ids: set[str], text_field: str | None, skipped: Skipped
) -> None:
    """Add one annotation to the labels of its image."""
    category, where = annotation.get("category_id"), f"id {annotation.get('id')} of image {labels.image_id}"
    phrases = next(filter(None, (_texts(annotation, name) for name in _fields(text_field))), [])
    is_crowd = annotation.get("iscrowd") and not isinstance(annotation.get("attributes"), dict) and not phrases
    if not is_id(category) or (category not in names and not is_crowd):
        skipped.add("annotations of unknown categories", where)
        return
    name = names.get(category)
    labels.present |= {name} if name else set()
    if is_crowd:
        labels.add(AnnotatedInstance(f"crowd {len(labels.instances)}", [], name, is_crowd=True))
        skipped.add("crowd regions", where)
    elif annotation.get("id") is None or str(annotation["id"]) in ids:
        skipped.add("annotations without an id of their own", where)
    else:
        try:
            target = to_target(annotation.get("segmentation"), labels.size)
        except (ValueError, OverflowError) as error:
            skipped.add("annotations with unusable masks", f"{where}: {error}")
            return
        ids.add(str(annotation["id"]))
        instance = AnnotatedInstance(str(annotation["id"]), target, name)
        labels.add(instance, phrases, f"{labels.image_id}-{annotation['id']}")


def _fields(text_field: str | None) -> tuple[str, ...]:
    return FIELDS if text_field is None else (text_field,)


def _texts(annotation: dict, name: str) -> list[str]:
    value: Any = annotation
    for part in [name] if name in annotation else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return phrases_in(value)


def write(records: Sequence[Record], out: Path) -> list[str]:
    """Write an annotation file. `image_id` of the records is the name of the image.

    Returns:
        Facts that the user should know.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for number, record in enumerate(records, start=1):
        height, width = record.size
        image = {"id": number, "file_name": record.image_id, "height": height, "width": width}
        negatives = negatives_of(record)
        images.append({**image, NEGATIVES: negatives} if negatives else image)
        for instance, phrases in zip(record.instances, phrases_by_instance(record), strict=True):
            rle = to_rle(instance.segmentation, record.size)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": to_json(instance.segmentation),
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                    "phrases": phrases,
                    "attributes": {"phrases": "\n".join(phrases)},  # CVAT keeps attributes only
                }
            )
    categories = [{"id": 1, "name": OBJECT}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(out, json.dumps(content, ensure_ascii=False))
    return []
