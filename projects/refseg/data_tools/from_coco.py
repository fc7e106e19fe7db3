"""`refseg data from-coco`: annotations in COCO's layout -> JSONL rows, as a start for one's own data.

Crowd regions are no targets: they stand for many objects that nobody told apart. They still count as present, so that
no row says that their category is absent, and a row whose category also has one in the image is tagged `crowd`. CVAT
marks every mask of its brush as a crowd (`iscrowd` 1); these are targets.

A phrase on several annotations of an image is one row that refers to all of them, as people annotate "both dogs".
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

from refseg.datasets.readers.checks import clean_segmentation, is_side, is_text
from refseg.errors import DataError, UsageError
from refseg.terminal import open_output

Row = dict[str, Any]


@dataclass(frozen=True)
class Wording:
    """What becomes a row, and with which text."""

    per: Literal["category", "instance"] = "category"
    text: str = "{category}"
    text_many: str | None = None
    text_field: str | None = None
    no_target: int = 0
    seed: int = 0
    split: str | None = None

    def __post_init__(self) -> None:
        if self.text_field is not None and self.per != "instance":
            raise UsageError("--text-field needs --per instance: a category has no field of an annotation")
        if self.no_target < 0:
            raise UsageError("--no-target must be at least 0")
        for text in (self.text, self.text if self.text_many is None else self.text_many):
            try:
                filled = text.format(category="category", count=1)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise UsageError(f"text {text!r}: only {{category}} and {{count}} are filled in ({error})") from None
            if not is_text(filled):
                raise UsageError(f"text {text!r} is blank, or no text: without --text it is the category's name")

    def of(self, category: str, count: int) -> str:
        text = self.text if count == 1 or self.text_many is None else self.text_many
        return text.format(category=category, count=count)


@dataclass
class LeftOut:
    """What could not be used, and what was joined: how often, and the first case of each kind."""

    numbers: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)  # phrases that several annotations of an image have

    def add(self, kind: str, where: str) -> None:
        self.numbers[kind] += 1
        self.first.setdefault(kind, where)

    def lines(self) -> list[str]:
        lines = [f"left out: {number:,} {kind} (first: {self.first[kind]})" for kind, number in self.numbers.items()]
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
        raise UsageError(f"{out} is there already: choose another --out, or --overwrite")
    left_out = LeftOut()
    numbers: Counter = Counter()
    with open_output(out) as file:
        for row in convert(args.instances, args.images, out.parent, wording, left_out):
            file.write(json.dumps(row).encode() + b"\n")
            numbers["rows"] += 1
            numbers["targets"] += len(row["targets"] or ())
            numbers["without target"] += row["targets"] is None
        if not numbers["rows"]:
            raise DataError("\n".join([f"{args.instances}: nothing can be made of it", *left_out.lines()]))
    without = numbers["without target"]
    print(f"{out}: {numbers['rows']:,} rows ({without:,} without target), {numbers['targets']:,} targets")
    print("\n".join([*left_out.lines(), f"Look through the texts, then: refseg data check {out}"]))
    return 0


def convert(
    instances: str | Path, images: str | Path, base: Path, wording: Wording, left_out: LeftOut
) -> Iterator[Row]:
    """Rows of all images, in the file's order; image paths are relative to `base`."""
    content = read_coco(Path(instances))
    images = Path(images)
    if not images.is_dir():
        raise DataError(f"no such folder of images: {images}")
    categories = category_names(content["categories"], left_out)
    folder = path_to(images, base)
    of_image: dict[Any, list[dict]] = {}
    for number, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict) and _is_id(annotation.get("image_id")):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        else:
            left_out.add("annotations without image_id", f"annotations[{number}]")
    seen: set[Any] = set()
    rng = random.Random(wording.seed)
    for number, image in enumerate(content["images"]):
        where = f"images[{number}]"
        if fault := _image_fault(image, seen):
            left_out.add(f"images with {fault}", where)
            continue
        seen.add(image["id"])
        file = images / image["file_name"]
        if not os.path.isfile(file):
            left_out.add("images whose file is not there", str(file))
            continue
        path = (folder / image["file_name"]).as_posix()
        size = [image["height"], image["width"]]
        head = {"image": path, "size": size}
        annotations = of_image.pop(image["id"], [])
        for row in _rows(image["id"], annotations, categories, size, wording, rng, left_out):
            yield {**row, **head, **({"split": wording.split} if wording.split else {})}
    for image_id, rest in of_image.items():
        for annotation in rest:
            left_out.add("annotations of images that are left out", f"id {annotation.get('id')} of image {image_id}")


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


def path_to(images: Path, base: Path) -> Path:
    """The folder of images as seen from `base`. Links stay links, because files go by the names that links have; but
    ".." out of a folder that is a link leaves the folder that it leads to."""
    folder = os.path.relpath(os.path.abspath(images), os.path.abspath(base))
    if os.path.realpath(os.path.join(base, folder)) != os.path.realpath(images):
        folder = os.path.relpath(os.path.abspath(images), os.path.realpath(base))
    return Path(folder)


def category_names(categories: list, left_out: LeftOut) -> dict[int | str, str]:
    """Names by id, of the categories that can be named."""
    names = {}
    for number, category in enumerate(categories):
        if not isinstance(category, dict) or not _is_id(category.get("id")):
            left_out.add("categories without an id", f"categories[{number}]")
        elif not is_text(category.get("name")):
            left_out.add("categories without a name", f"id {category['id']}")
        else:
            names[category["id"]] = category["name"].strip()
    return names


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _image_fault(image: Any, seen: set[Any]) -> str:
    if not isinstance(image, dict) or not _is_id(image.get("id")):
        return "no id"
    if image["id"] in seen:
        return "the id of an earlier one"
    if not is_text(image.get("file_name")):
        return "no file_name"
    if not (is_side(image.get("height")) and is_side(image.get("width"))):
        return "no height and width"
    return ""


def _rows(
    image_id: Any,
    annotations: list[dict],
    categories: dict[Any, str],
    size: list[int],
    wording: Wording,
    rng: random.Random,
    left_out: LeftOut,
) -> Iterator[Row]:
    """Rows of one image, without what they all share."""
    usable: dict[Any, list[tuple[dict, Any]]] = {}  # category -> annotations with targets
    crowds: set[Any] = set()
    ids: set[str] = set()
    for annotation in annotations:
        category, where = annotation.get("category_id"), f"id {annotation.get('id')} of image {image_id}"
        if not _is_id(category):
            left_out.add("annotations of unknown categories", where)
        elif _is_crowd(annotation, wording):
            crowds.add(category)
            left_out.add("crowd regions", where)
        elif category not in categories:
            left_out.add("annotations of unknown categories", where)
        elif annotation.get("id") is None or str(annotation["id"]) in ids:
            left_out.add("annotations without an id of their own", where)
        else:
            try:
                target = to_target(annotation.get("segmentation"), (size[0], size[1]))
            except (ValueError, OverflowError) as error:
                left_out.add("annotations with unusable masks", f"{where}: {error}")
                continue
            ids.add(str(annotation["id"]))
            usable.setdefault(category, []).append((annotation, target))
    rows: dict[str, Row] = {}  # by text, without regard to case
    joined: set[str] = set()
    for category, members in usable.items():
        groups = [members] if wording.per == "category" else [[member] for member in members]
        for group in groups:
            name = f"{image_id}-c{category}" if wording.per == "category" else f"{image_id}-{group[0][0]['id']}"
            texts = _texts(group[0][0], categories[category], len(group), wording)
            if not texts:
                left_out.add(f"annotations without text in {wording.text_field!r}", f"id {group[0][0]['id']}")
            for number, text in enumerate(texts):
                row = rows.setdefault(
                    plain_text(text),
                    {
                        "expression_id": name if len(texts) == 1 else f"{name}-{number}",
                        "text": text,
                        "targets": [],
                        "instance_ids": [],
                    },
                )
                more = [(str(a["id"]), target) for a, target in group if str(a["id"]) not in row["instance_ids"]]
                if more and row["targets"]:
                    joined.add(plain_text(text))
                row["instance_ids"] += [annotation_id for annotation_id, _ in more]
                row["targets"] += [target for _, target in more]
                if category in crowds:
                    row["tags"] = {"crowd": True}
    left_out.joined += [f"{rows[text]['text']!r} of image {image_id}" for text in rows if text in joined]
    yield from rows.values()
    present = {annotation["category_id"] for annotation in annotations if _is_id(annotation.get("category_id"))}
    absent = [category for category in categories if category not in present]
    for category in sorted(rng.sample(absent, min(wording.no_target, len(absent))), key=str):
        text = wording.of(categories[category], 1)
        if plain_text(text) in rows:
            left_out.add("phrases without target that refer to something in their image", f"{text!r}, {image_id}")
        else:
            yield {"expression_id": f"{image_id}-n{category}", "text": text, "targets": None}


def plain_text(text: str) -> str:
    """The text by which two phrases of an image are the same: without regard to case and the number of blanks."""
    return " ".join(text.casefold().split())


def _is_crowd(annotation: dict, wording: Wording) -> bool:
    """Whether it stands for many objects. Masks of CVAT's brush, which have `attributes`, and regions with a text of
    their own do not, whatever `iscrowd` says."""
    if not annotation.get("iscrowd") or isinstance(annotation.get("attributes"), dict):
        return False
    return wording.text_field is None or not _texts(annotation, "", 1, wording)


def _texts(annotation: dict, category: str, count: int, wording: Wording) -> list[str]:
    if wording.text_field is None:
        return [wording.of(category, count)]
    value = _field_of(annotation, wording.text_field)
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if is_text(text)]


def _field_of(annotation: dict, name: str) -> Any:
    """The value of a field; `attributes.expression` is `expression` of the dict `attributes`. None where it is not."""
    if name in annotation:
        return annotation[name]
    value: Any = annotation
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def to_target(segmentation: Any, size: tuple[int, int]) -> Any:
    """Polygons or an RLE as JSON; ValueError says what is wrong."""
    clean = clean_segmentation(segmentation, size)
    if isinstance(clean, dict):
        counts = clean["counts"]
        return {"size": list(clean["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return clean
