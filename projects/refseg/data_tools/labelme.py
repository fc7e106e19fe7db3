"""labelme's format: a JSON file for each image, with polygons and masks.

A shape's `label` is its category, and its `description` holds its phrases, one per line. Shapes with the same label
and `group_id` are one object. Phrases that refer to nothing are in the list `negative_phrases` of the file, which
labelme keeps but does not show.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.data_tools.conversion import (
    NEGATIVES,
    OBJECT,
    LabeledImage,
    Skipped,
    find_image,
    negatives_of,
    phrases_by_instance,
    phrases_in,
    size_of,
    to_target,
)
from refseg.datasets.geometry import box_of_mask
from refseg.datasets.images import open_image
from refseg.datasets.masks import decode, encode, mask_of_image, to_rle
from refseg.datasets.readers.checks import MAX_RLE_PIXELS, is_text, load_json
from refseg.errors import DataError
from refseg.records import AnnotatedInstance, Record
from refseg.terminal import write_whole

VERSION = "5.5.0"  # of labelme's files
IGNORED = "__ignore__"  # label of regions that are no object, by labelme's own convention


def read(source: Path, images: Path | None, skipped: Skipped) -> tuple[list[LabeledImage], dict[str, str]]:
    """Return the labels of all files, and the names of labels.

    Args:
        source: A file, or a folder with files at any depth.
        images: Folder of the images. By default, the paths in the files count.
        skipped: Collects what cannot be used.
    """
    files = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    labeled: list[LabeledImage] = []
    categories: dict[str, str] = {}
    for file in files:
        try:
            content = load_json(file)
        except (OSError, DataError) as error:
            skipped.add("files that cannot be read", str(error))
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            skipped.add("JSON files without shapes", str(file))
            continue
        labels = _labels(file, content, images, skipped)
        if labels is not None:
            labeled.append(labels)
            for category in sorted(labels.present):
                categories.setdefault(category, str(len(categories)))
    return labeled, categories


def _labels(file: Path, content: dict, images: Path | None, skipped: Skipped) -> LabeledImage | None:
    """Return the labels of one file."""
    name = content.get("imagePath")
    path = find_image(file.parent if images is None else images, name) if is_text(name) else None
    if path is None:
        skipped.add("images whose file is not there", f"{file}, imagePath {name!r}")
        return None
    try:
        size = size_of(path, content.get("imageHeight"), content.get("imageWidth"))
    except DataError as error:
        skipped.add("images that cannot be read", f"{file}: {error}")
        return None
    # Shapes of each object
    objects: dict[Any, list[dict]] = {}
    present: set[str] = set()
    for number, shape in enumerate(content["shapes"]):
        where = f"{file}, shapes[{number}]"
        if not isinstance(shape, dict) or not is_text(shape.get("label")):
            skipped.add("shapes without a label", where)
            continue
        label = shape["label"].strip()
        if label == IGNORED:
            skipped.add(f"shapes labeled {IGNORED}", where)
            continue
        present.add(label)
        kind = shape.get("shape_type") or "polygon"
        if kind not in ("polygon", "mask"):
            skipped.add("shapes that are neither polygons nor masks", f"{where}: {kind!r}")
            continue
        group = shape.get("group_id")
        objects.setdefault((label, number if group is None else f"group {group}"), []).append({**shape, "kind": kind})
    # Objects with their phrases
    labels = LabeledImage(str(file), os.path.normpath(path), size, [], [], present)
    for (label, key), shapes in objects.items():
        try:
            target = _target(shapes, size)
        except (ValueError, OverflowError) as error:
            skipped.add("objects with unusable masks", f"{file}, {label!r}: {error}")
            continue
        phrases = dict.fromkeys(text for shape in shapes for text in phrases_in(shape.get("description")))
        labels.add(AnnotatedInstance(f"{label} {key}", target, label), list(phrases))
    labels.add_negatives(phrases_in(content.get(NEGATIVES)))
    return labels


def _target(shapes: list[dict], size: tuple[int, int]) -> Any:
    """Return the target of an object's shapes, or raise a ValueError that says what is wrong."""
    parts = [_polygon(shape) if shape["kind"] == "polygon" else _mask(shape, size) for shape in shapes]
    if all(isinstance(part, list) for part in parts):
        return to_target(parts, size)
    clean = [to_target([part] if isinstance(part, list) else part, size) for part in parts]
    return to_target(coco_mask.merge([to_rle(part, size) for part in clean]), size)


def _points(shape: dict) -> list[list[float]]:
    points = shape.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(number, int | float) for number in point)
        for point in points
    ):
        raise ValueError("points are pairs [x, y]")
    return points


def _polygon(shape: dict) -> list[float]:
    return [number for point in _points(shape) for number in point]


def _mask(shape: dict, size: tuple[int, int]) -> dict:
    """Return the RLE of a mask, which the file holds as a PNG of the box between two points."""
    points, mask = _points(shape), shape.get("mask")
    if len(points) != 2 or not isinstance(mask, str):
        raise ValueError("a mask has two points and a PNG in base64")
    if size[0] * size[1] >= MAX_RLE_PIXELS:
        raise ValueError(f"an image of size {list(size)} is too large for a mask")
    try:
        encoded = base64.b64decode(mask, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its mask is not base64 ({error})") from None
    if not max(abs(number) for point in points for number in point) <= max(size):
        raise ValueError("its points are outside of the image")
    left, top = (round(number) for number in points[0])
    with open_image("mask", encoded) as image:
        pixels = mask_of_image(image, "in the file")
    height, width = pixels.shape
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"its mask of {width} x {height} pixels at {points[0]} reaches beyond the image")
    full = np.zeros(size, np.uint8)
    full[top : top + height, left : left + width] = pixels
    return encode(full)


def write(records: Sequence[Record], out: Path) -> list[str]:
    """Write a folder with a file for each image. Polygons stay polygons, and all else becomes masks.

    Args:
        records: Records whose `image_id` is the name of the image.
        out: The folder.

    Returns:
        Facts that the user should know.
    """
    names: set[str] = set()
    for record in records:
        name = os.path.splitext(record.image_id)[0]
        if name.casefold() in names:
            name = record.image_id  # of 1.jpg and 1.png, the second one has the file 1.png.json
        names.add(name.casefold())
        file = out / f"{name}.json"
        folder = os.path.realpath(file.parent)
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": list(_shapes(record)),
            "imagePath": Path(os.path.relpath(os.path.realpath(record.image_path), folder)).as_posix(),
            "imageData": None,
            "imageHeight": record.size[0],
            "imageWidth": record.size[1],
        }
        negatives = negatives_of(record)
        content |= {NEGATIVES: negatives} if negatives else {}
        write_whole(file, json.dumps(content, ensure_ascii=False, indent=1))
    return ["each file names its image by a relative path, so move both together"]


def _shapes(record: Record) -> Iterator[dict[str, Any]]:
    for number, (instance, phrases) in enumerate(zip(record.instances, phrases_by_instance(record), strict=True)):
        shape = {"label": OBJECT, "description": "\n".join(phrases), "group_id": number, "flags": {}}
        if isinstance(instance.segmentation, dict):
            mask = decode(to_rle(instance.segmentation, record.size))
            left, top, right, bottom = map(int, box_of_mask(mask))
            yield {
                **shape,
                "shape_type": "mask",
                "points": [[left, top], [right - 1, bottom - 1]],
                "mask": _png(mask[top:bottom, left:right]),
            }
            continue
        for polygon in instance.segmentation:
            points = [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]
            yield {**shape, "shape_type": "polygon", "points": points, "mask": None}


def _png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()
