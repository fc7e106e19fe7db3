"""Label Studio's JSON: masks of the brush and polygons.

Phrases of a region are, in this order: texts of TextArea tags with `perRegion`, choices of Choices tags with
`perRegion`, and its labels. Phrases that refer to nothing are the texts of a TextArea named `negative_phrases` of the
whole image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from refseg.data_tools.conversion import (
    NEGATIVES,
    OBJECT,
    LabeledImage,
    Skipped,
    check_folder,
    find_image,
    negatives_of,
    phrases_by_instance,
    phrases_in,
    size_of,
    to_target,
)
from refseg.datasets.masks import decode, encode, to_rle
from refseg.datasets.readers.checks import MAX_RLE_PIXELS, is_side, is_text
from refseg.errors import DataError
from refseg.inference.exports import decode_brush, encode_brush, write_list
from refseg.records import AnnotatedInstance, Record
from refseg.terminal import write_whole

LABELS, PHRASES = "label", "phrases"  # names of the tags that `write` uses
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix of the names of uploaded files
SETUP = f"""<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="{LABELS}" toName="image"><Label value="{OBJECT}"/></BrushLabels>
  <Header value="Phrases of the selected region"/>
  <TextArea name="{PHRASES}" toName="image" perRegion="true" editable="true"/>
  <Header value="Phrases that refer to nothing in this image"/>
  <TextArea name="{NEGATIVES}" toName="image" editable="true"/>
</View>
"""


def read(file: Path, content: Any, images: Path, skipped: Skipped) -> tuple[list[LabeledImage], dict[str, str]]:
    """Return the labels of all tasks, and the names of labels.

    Predictions are skipped, because nobody has checked them. If a task has several annotations, the ground truth or
    else the last one counts.

    Args:
        file: The file.
        content: Its content: a list of tasks, or one task.
        images: Folder of the images.
        skipped: Collects what cannot be used.
    """
    tasks = content if isinstance(content, list) else [content]
    check_folder(images)
    labeled: list[LabeledImage] = []
    categories: dict[str, str] = {}
    seen: set[str] = set()
    for number, task in enumerate(tasks):
        where = f"task {task.get('id', number)}" if isinstance(task, dict) else f"task {number}"
        results = _results(task, where, skipped)
        if results is None:
            continue
        name = _image_of(task)
        path = name and _find(images, name)
        if not path:
            skipped.add("images whose file is not there", f"{where}: {name or 'no image in its data'}")
        elif str(path) in seen:
            skipped.add("tasks with the image of an earlier one", where)
        else:
            seen.add(str(path))
            labels = _labels(path.relative_to(images).as_posix(), path, results, where, skipped)
            if labels is not None:
                labeled.append(labels)
                for category in labels.present:
                    categories.setdefault(category, str(len(categories)))
    return labeled, categories


def _results(task: Any, where: str, skipped: Skipped) -> list[dict] | None:
    """Return the results of the annotation that counts, or None if there is none."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        skipped.add("tasks without data", where)
        return None
    annotations = task.get("annotations")
    usable = [
        entry
        for entry in (annotations if isinstance(annotations, list) else [])
        if isinstance(entry, dict) and not entry.get("was_cancelled") and isinstance(entry.get("result"), list)
    ]
    if not usable:
        skipped.add("tasks without annotations (predictions do not count: submit them in Label Studio)", where)
        return None
    chosen = next((entry for entry in usable if entry.get("ground_truth")), usable[-1])
    if len(usable) > 1:
        skipped.add("further annotations of a task", where)
    return [result for result in chosen["result"] if isinstance(result, dict)]


def _image_of(task: dict) -> str | None:
    """Return the name of a task's image: a URL or path in `image`, or in its only text."""
    texts = [value for value in task["data"].values() if is_text(value)]
    value = task["data"].get("image")
    return value if is_text(value) else texts[0] if len(texts) == 1 else None


def _find(images: Path, name: str) -> Path | None:
    """Return the file of an image that a task names by a path, a URL, or an upload."""
    if "://" in name or name.startswith("/data/"):
        try:
            url = urlsplit(name)
        except ValueError:
            return None
        name = parse_qs(url.query).get("d", [unquote(url.path)])[0]
    name = name.lstrip("/")
    found = find_image(images, name)
    return found or find_image(images, UPLOADED.sub("", os.path.basename(name)))


def _labels(name: str, path: Path, results: list[dict], where: str, skipped: Skipped) -> LabeledImage | None:
    """Return the labels of one task."""
    # Regions, and the texts and choices by the id of their region
    regions: dict[str, dict] = {}
    texts: dict[str, list[str]] = {}
    choices: dict[str, list[str]] = {}
    negatives: list[str] = []
    for result in results:
        kind, value, key = str(result.get("type")), result.get("value"), str(result.get("id"))
        if not isinstance(value, dict):
            skipped.add("results without a value", where)
        elif kind == "textarea" and result.get("from_name") == NEGATIVES:
            negatives += phrases_in(value.get("text"))
        elif kind == "textarea":
            texts.setdefault(key, []).extend(phrases_in(value.get("text")))
        elif kind == "choices":
            choices.setdefault(key, []).extend(phrases_in(value.get("choices")))
        elif "rle" in value or "points" in value:
            shape = regions.setdefault(key, {**result, "labels": []})
            shape["labels"] += phrases_in(value.get(kind))
        elif kind in ("rectanglelabels", "ellipselabels", "keypointlabels", "rectangle", "ellipse", "keypoint"):
            skipped.add("regions that are neither brush masks nor polygons", f"{where}, {kind}")
    size = next((_size(region) for region in regions.values() if _size(region)), None)
    if size is None:
        try:
            size = size_of(path)
        except DataError as error:
            skipped.add("images that cannot be read", f"{where}: {error}")
            return None
    labels = LabeledImage(name, str(path), size, [], [])
    for key, region in regions.items():
        names = region["labels"]
        labels.present |= set(names)
        try:
            target = _target(region, size)
        except (ValueError, OverflowError) as error:
            skipped.add("regions with unusable masks", f"{where}, region {key}: {error}")
            continue
        labels.add(
            AnnotatedInstance(key, target, names[0] if names else None), texts.get(key) or choices.get(key) or []
        )
        for category in names[1:]:  # the same object in another category
            labels.add(AnnotatedInstance(key, target, category))
    labels.add_negatives(negatives)
    for key in [*texts, *choices]:
        if key not in regions:
            skipped.add("texts and choices of whole images", where)
    return labels


def _size(region: dict) -> tuple[int, int] | None:
    size = (region.get("original_height"), region.get("original_width"))
    return size if is_side(size[0]) and is_side(size[1]) else None


def _target(region: dict, size: tuple[int, int]) -> Any:
    """Return the target of a region, or raise a ValueError that says what is wrong."""
    height, width = size
    value = region["value"]
    if _size(region) != size:
        raise ValueError(f"its size is {_size(region)}, not {size} as of the image's other regions")
    if region.get("image_rotation"):
        raise ValueError("its image was rotated in Label Studio. Rotate the image file before labeling")
    if "rle" in value:
        if height * width * 4 >= MAX_RLE_PIXELS:
            raise ValueError(f"an image of size {list(size)} is too large for a brush")
        return to_target(encode(decode_brush(value["rle"], size)), size)
    points = value["points"]
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError("points are pairs [x, y] in percent")
    if not all(isinstance(number, int | float) for point in points for number in point):
        raise ValueError("points are numbers in percent")
    polygon = [number * side / 100 for point in points for number, side in zip(point, (width, height), strict=True)]
    return to_target([polygon], size)


def write(records: Sequence[Record], out: Path, *, prefix: str = "") -> list[str]:
    """Write tasks with annotations, and the labeling setup beside them (suffix .xml).

    Args:
        records: Records whose `image_id` is the name of the image.
        out: The JSON file.
        prefix: Goes before the names of images, so that Label Studio finds them.

    Returns:
        Facts that the user should know.
    """
    write_list(out, (_task(record, prefix) for record in records))
    setup = out.with_suffix(".xml")
    write_whole(setup, SETUP)
    return [f"{setup}: paste it into the project's Settings > Labeling Interface > Code, before you import {out}"]


def _task(record: Record, prefix: str) -> dict[str, Any]:
    name = prefix + quote(record.image_id) if prefix else record.image_id
    return {"data": {"image": name}, "annotations": [{"result": list(_annotated(record))}]}


def _annotated(record: Record) -> Iterator[dict[str, Any]]:
    height, width = record.size
    image = {"original_width": width, "original_height": height, "image_rotation": 0}
    for number, (instance, phrases) in enumerate(zip(record.instances, phrases_by_instance(record), strict=True)):
        rle = encode_brush(decode(to_rle(instance.segmentation, record.size)))
        brush = {"format": "rle", "rle": rle}
        common = {"id": f"region{number}", "to_name": "image", **image}
        yield {**common, "type": "brushlabels", "from_name": LABELS, "value": {**brush, "brushlabels": [OBJECT]}}
        yield {**common, "type": "textarea", "from_name": PHRASES, "value": {"text": phrases}}
    negatives = negatives_of(record)
    if negatives:
        common = {"id": NEGATIVES, "type": "textarea", "from_name": NEGATIVES, "to_name": "image"}
        yield {**common, "value": {"text": negatives}}
