"""Import and export of SA-Co's format (`refseg.datasets.readers.saco`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from refseg.data_tools.conversion import OBJECT, LabeledImage, Skipped, check_folder, to_json
from refseg.datasets.masks import to_rle
from refseg.datasets.readers import read_saco
from refseg.records import Record
from refseg.terminal import write_whole


def read(file: Path, images: Path, skipped: Skipped) -> list[LabeledImage]:
    """Return the labels of all images.

    Args:
        file: Annotation file.
        images: Folder that its file names are relative to.
        skipped: Collects what cannot be used.
    """
    check_folder(images)
    annotations = read_saco(file=file)
    for problem in annotations.problems:
        reason = "entries that were not annotated exhaustively" if problem.is_notice else "entries that cannot be used"
        skipped.add(reason, str(problem))
    labeled = []
    for record in annotations.records:
        usable = []
        for expression in record.expressions:
            if any(record.instances[index].is_crowd for index in expression.referents):
                skipped.add("phrases with crowd regions", f"id {expression.expression_id}, {expression.text!r}")
            else:
                usable.append(expression)
        path = str(images / record.image_path)
        labeled.append(LabeledImage(record.image_id, path, record.size, record.instances, usable))
    return labeled


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
