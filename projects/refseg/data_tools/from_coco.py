"""`refseg data from-coco`: convert COCO annotations to JSONL rows, as a start for your own data set.

Crowd regions are no targets, because they stand for many objects. They still count as present, so no row says that
their category is absent. A row whose category also has a crowd region in the image is tagged `crowd`. CVAT marks every
mask of its brush as a crowd (`iscrowd` 1), and these are targets.

If several annotations of an image have the same phrase, such as "both dogs", one row refers to all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refseg.datasets.readers.checks import clean_segmentation, is_side, is_text, plain_text
from refseg.errors import DataError, UsageError
from refseg.paths import path_to
from refseg.terminal import open_output

Row = dict[str, Any]


@dataclass(frozen=True)
class Wording:
    """Rules that turn annotations into rows, with the text of each row."""

    per: Literal["category", "instance"] = "category"
    text: str = "{category}"
    text_many: str | None = None  # text for several instances, `text` by default
    text_field: str | None = None  # field of an annotation with its text
    no_target: int = 0  # rows per image for absent categories
    seed: int = 0
    split: str | None = None

    def __post_init__(self) -> None:
        if self.text_field is not None and self.per != "instance":
            raise UsageError("--text-field needs --per instance: a category has no field of an annotation")
        if self.no_target < 0:
            raise UsageError(f"--no-target must be at least 0, not {self.no_target}")
        for text in (self.text, self.text if self.text_many is None else self.text_many):
            try:
                filled = text.format(category="category", count=1)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise UsageError(f"text {text!r}: only {{category}} and {{count}} are filled in ({error})") from None
            if not is_text(filled):
                raise UsageError(f"text {text!r} is blank or invalid. Omit --text to use the category's name")

    def of_category(self, category: str, count: int) -> str:
        text = self.text if count == 1 or self.text_many is None else self.text_many
        return text.format(category=category, count=count)

    def of_annotation(self, annotation: dict) -> list[str]:
        """Return the texts in an annotation's field. `attributes.caption` is the field `caption` of `attributes`."""
        value: Any = annotation
        name = self.text_field or ""
        for part in [name] if name in annotation else name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return [text.strip() for text in (value if isinstance(value, list) else [value]) if is_text(text)]


@dataclass
class Skipped:
    """Number of skipped entries and the first one, by reason, and the phrases that annotations share."""

    numbers: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str) -> None:
        self.numbers[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        lines = [f"skipped: {number:,} {why} (first: {self.first[why]})" for why, number in self.numbers.items()]
        if self.joined:
            lines.append(
                f"joined: {len(self.joined):,} phrases that several annotations of an image share; each is one row "
                f"that refers to all of them (first: {self.joined[0]}). If one object is meant, change its text"
            )
        return lines


def main(args: argparse.Namespace) -> int:
    wording = Wording(
        args.per, args.text, args.text_many, args.text_field, args.no_target, args.seed, args.split or None
    )
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} already exists. Choose another --out, or pass --overwrite")
    skipped = Skipped()
    numbers: Counter = Counter()
    with open_output(out) as file:
        for row in convert(args.instances, args.images, out.parent, wording, skipped):
            file.write(json.dumps(row).encode() + b"\n")
            numbers["rows"] += 1
            numbers["targets"] += len(row["targets"] or ())
            numbers["without target"] += row["targets"] is None
        if not numbers["rows"]:
            raise DataError("\n".join([f"{args.instances} has no usable annotations", *skipped.lines()]))
    without = numbers["without target"]
    print(f"{out}: {numbers['rows']:,} rows ({without:,} without target), {numbers['targets']:,} targets")
    print("\n".join([*skipped.lines(), f"Review the texts, then run: refseg data check {out}"]))
    return 0


def convert(instances: str | Path, images: str | Path, base: Path, wording: Wording, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of all images in the order of the file.

    Args:
        instances: Annotation file.
        images: Folder that its file names are relative to.
        base: Folder that image paths of the rows are relative to.
        wording: The texts.
        skipped: Collects what cannot be used.
    """
    content = read_coco(Path(instances))
    images = Path(images)
    if not images.is_dir():
        raise DataError(f"no such folder of images: {images}")
    folder = path_to(images, base)
    # Names of categories by id
    categories: dict[int | str, str] = {}
    for number, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or not _is_id(category.get("id")):
            skipped.add("categories without an id", f"categories[{number}]")
        elif not is_text(category.get("name")):
            skipped.add("categories without a name", f"id {category['id']}")
        else:
            categories[category["id"]] = category["name"].strip()
    # Annotations by image
    of_image: dict[Any, list[dict]] = {}
    for number, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict) and _is_id(annotation.get("image_id")):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        else:
            skipped.add("annotations without image_id", f"annotations[{number}]")
    # Rows
    seen: set[Any] = set()
    rng = random.Random(wording.seed)
    for number, image in enumerate(content["images"]):
        where = f"images[{number}]"
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            skipped.add("images without an id", where)
        elif image["id"] in seen:
            skipped.add("images with the id of an earlier one", where)
        elif not is_text(image.get("file_name")):
            skipped.add("images without file_name", where)
        elif not (is_side(image.get("height")) and is_side(image.get("width"))):
            skipped.add("images without height and width", where)
        else:
            seen.add(image["id"])
            if not os.path.isfile(images / image["file_name"]):
                skipped.add("images whose file is not there", str(images / image["file_name"]))
                continue
            size = (image["height"], image["width"])
            head = {"image": (folder / image["file_name"]).as_posix(), "size": list(size)}
            annotations = of_image.pop(image["id"], [])
            for row in _rows(image["id"], annotations, categories, size, wording, rng, skipped):
                yield {**row, **head, **({"split": wording.split} if wording.split else {})}
    for image_id, annotations in of_image.items():
        for annotation in annotations:
            skipped.add("annotations of skipped images", f"id {annotation.get('id')} of image {image_id}")


def read_coco(file: Path) -> dict[str, list]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: truncated, or not JSON ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file} has no list {name!r}: it is not an annotation file in COCO's layout")
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _rows(
    image_id: Any,
    annotations: list[dict],
    categories: dict[int | str, str],
    size: tuple[int, int],
    wording: Wording,
    rng: random.Random,
    skipped: Skipped,
) -> Iterator[Row]:
    """Yield the rows of one image, without its path, its size, and the split."""
    # Usable annotations by category
    usable: dict[Any, list[tuple[dict, Any]]] = {}  # annotations with targets
    crowds: set[Any] = set()
    ids: set[str] = set()
    for annotation in annotations:
        category, where = annotation.get("category_id"), f"id {annotation.get('id')} of image {image_id}"
        # Masks of CVAT's brush, which have `attributes`, and regions with their own text are no crowds
        is_crowd = annotation.get("iscrowd") and not isinstance(annotation.get("attributes"), dict)
        if is_crowd and wording.text_field is not None:
            is_crowd = not wording.of_annotation(annotation)
        if not _is_id(category):
            skipped.add("annotations of unknown categories", where)
        elif is_crowd:
            crowds.add(category)
            skipped.add("crowd regions", where)
        elif category not in categories:
            skipped.add("annotations of unknown categories", where)
        elif annotation.get("id") is None or str(annotation["id"]) in ids:
            skipped.add("annotations without an id of their own", where)
        else:
            try:
                target = to_target(annotation.get("segmentation"), size)
            except (ValueError, OverflowError) as error:
                skipped.add("annotations with unusable masks", f"{where}: {error}")
                continue
            ids.add(str(annotation["id"]))
            usable.setdefault(category, []).append((annotation, target))
    # Rows by text. A text that several groups share is one row.
    rows: dict[str, Row] = {}
    joined: set[str] = set()
    for category, members in usable.items():
        for group in [members] if wording.per == "category" else [[member] for member in members]:
            first = group[0][0]
            name = f"{image_id}-c{category}" if wording.per == "category" else f"{image_id}-{first['id']}"
            if wording.text_field is None:
                texts = [wording.of_category(categories[category], len(group))]
            else:
                texts = wording.of_annotation(first)
                if not texts:
                    skipped.add(f"annotations without text in {wording.text_field!r}", f"id {first['id']}")
            for number, text in enumerate(texts):
                expression_id = name if len(texts) == 1 else f"{name}-{number}"
                new = {"expression_id": expression_id, "text": text, "targets": [], "instance_ids": []}
                row = rows.setdefault(plain_text(text), new)
                added = [(str(a["id"]), target) for a, target in group if str(a["id"]) not in row["instance_ids"]]
                if added and row["targets"]:
                    joined.add(plain_text(text))
                row["instance_ids"] += [annotation_id for annotation_id, _ in added]
                row["targets"] += [target for _, target in added]
                if category in crowds:
                    row["tags"] = {"crowd": True}
    skipped.joined += [f"{rows[text]['text']!r} of image {image_id}" for text in rows if text in joined]
    yield from rows.values()
    # Rows without target for absent categories
    present = {annotation["category_id"] for annotation in annotations if _is_id(annotation.get("category_id"))}
    absent = [category for category in categories if category not in present]
    for category in sorted(rng.sample(absent, min(wording.no_target, len(absent))), key=str):
        text = wording.of_category(categories[category], 1)
        if plain_text(text) in rows:
            skipped.add("phrases without target that refer to something in their image", f"{text!r}, {image_id}")
        else:
            yield {"expression_id": f"{image_id}-n{category}", "text": text, "targets": None}


def to_target(segmentation: Any, size: tuple[int, int]) -> Any:
    """Return polygons or an RLE as JSON, or raise a ValueError that says what is wrong."""
    clean = clean_segmentation(segmentation, size)
    if isinstance(clean, dict):
        counts = clean["counts"]
        return {"size": list(clean["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return clean
