"""SA-Co's format: COCO's layout in which an entry of `images` is an image with a phrase (`text_input`).

A phrase without annotations refers to nothing. Boxes and areas are normalized by the size of the image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from refseg.data_tools.coco import by_image, problem_of_image
from refseg.data_tools.conversion import OBJECT, LabeledImage, Skipped, check_folder, to_json, to_target
from refseg.datasets.masks import to_rle
from refseg.datasets.readers.checks import is_text
from refseg.errors import DataError
from refseg.records import AnnotatedInstance, Expression, Record
from refseg.terminal import write_whole


def read(file: Path, content: Any, images: Path, skipped: Skipped) -> tuple[list[LabeledImage], dict[str, str]]:
    """Return the labels of all images. Phrases that share a mask refer to the same instance.

    Args:
        file: Annotation file.
        content: Its content.
        images: Folder that its file names are relative to.
        skipped: Collects what cannot be used. A phrase is skipped if any of its masks cannot be used.
    """
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file} has no list {name!r}: it is not a file in SA-Co's format")
    check_folder(images)
    of_pair = by_image(content["annotations"], skipped)
    labeled: dict[str, LabeledImage] = {}
    known: dict[tuple[str, str], int] = {}  # image and mask -> index of the instance
    seen: set[Any] = set()
    for number, pair in enumerate(content["images"]):
        problem = problem_of_image(pair, images)
        if problem is None and pair["id"] in seen:
            problem = ("images with the id of an earlier one", "")
        elif problem is None and not is_text(pair.get("text_input")):
            problem = ("images without text_input", "")
        elif problem is None and pair.get("is_instance_exhaustive", True) in (0, False, None):
            problem = ("phrases that are not annotated exhaustively (is_instance_exhaustive)", f"id {pair['id']}")
        if problem is not None:
            skipped.add(problem[0], problem[1] or f"images[{number}]")
            if isinstance(pair, dict) and isinstance(pair.get("id"), int | str):
                of_pair.pop(pair["id"], None)
            continue
        seen.add(pair["id"])
        name, size = pair["file_name"], (pair["height"], pair["width"])
        labels = labeled.setdefault(name, LabeledImage(name, str(images / name), size, [], []))
        where = f"id {pair['id']}, {pair['text_input']!r}"
        annotations = of_pair.pop(pair["id"], [])
        if labels.size != size:
            skipped.add("images with another size than in an earlier entry", where)
            continue
        if any(annotation.get("iscrowd") for annotation in annotations):
            skipped.add("phrases with crowd regions", where)
            continue
        try:
            targets = [to_target(annotation.get("segmentation"), size) for annotation in annotations]
        except (ValueError, OverflowError) as error:
            skipped.add("phrases with unusable masks", f"{where}: {error}")
            continue
        referents = []
        for target in targets:
            key = (name, json.dumps(target))
            if key not in known:
                known[key] = len(labels.instances)
                labels.add(AnnotatedInstance(str(len(labels.instances)), target))
            referents.append(known[key])
        text = pair["text_input"].strip()
        labels.expressions.append(Expression(str(pair["id"]), text, tuple(dict.fromkeys(referents))))
    for image_id, annotations in of_pair.items():
        for annotation in annotations:
            skipped.add("annotations of unknown images", f"id {annotation.get('id')} of image {image_id}")
    return list(labeled.values()), {}


def write(records: Sequence[Record], out: Path) -> list[str]:
    """Write a file in SA-Co's format. `image_id` of the records is the name of the image."""
    pairs: list[dict] = []
    annotations: list[dict] = []
    for record in records:
        height, width = record.size
        rles = [to_rle(instance.segmentation, record.size) for instance in record.instances]
        for expression in record.expressions:
            pair = {"id": len(pairs) + 1, "file_name": record.image_id, "text_input": expression.text}
            pair |= {"height": height, "width": width, "is_instance_exhaustive": 1, "is_pixel_exhaustive": 1}
            pairs.append(pair)
            for index in expression.referents:
                x, y, w, h = coco_mask.toBbox(rles[index]).tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": pair["id"],
                        "category_id": 1,
                        "segmentation": to_json(rles[index]),
                        "bbox": [x / width, y / height, w / width, h / height],
                        "area": int(coco_mask.area(rles[index])) / (height * width),
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": 1, "name": OBJECT}]
    content = {"images": pairs, "annotations": annotations, "categories": categories}
    write_whole(out, json.dumps(content, ensure_ascii=False))
    return []
