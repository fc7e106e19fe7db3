"""Shared parts of `refseg data import` and `export`: labels of an image, their phrases, and what was skipped.

A reader of a tool's format returns `LabeledImage`s, and a writer takes `Record`s. `to_rows` turns labels into rows of
our JSONL. Objects get their phrases from the annotators if any object has one, or else from the names of categories.

If several objects of an image have the same phrase, such as "both dogs", one row refers to all of them.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from refseg.datasets.images import open_image
from refseg.datasets.masks import rle_to_json
from refseg.datasets.readers.checks import clean_segmentation, is_side, is_text, plain_text
from refseg.errors import DataError, UsageError
from refseg.paths import path_to
from refseg.records import AnnotatedInstance, Expression, Record

Row = dict[str, Any]
OBJECT = "object"  # category of all objects in exported files, because JSONL has no categories
NEGATIVES = "negative_phrases"  # field of phrases that refer to nothing, in formats that have no place for them


@dataclass(slots=True)
class LabeledImage(Record):
    """Labels of one image in a tool's file. The path of the image is complete.

    `expressions` holds one entry for each phrase of each object, and phrases that refer to nothing. `to_rows` joins
    those with the same text.

    Args:
        present: Categories in the image, including those of objects that cannot be used.
        split: Split of the image, if the format has splits.
    """

    present: set[str] = field(default_factory=set)
    split: str | None = None

    def add(self, instance: AnnotatedInstance, phrases: Sequence[str] = (), expression_id: str = "") -> None:
        """Add an object with its phrases."""
        for number, text in enumerate(phrases):
            name = f"{expression_id}-{number}" if expression_id and len(phrases) > 1 else expression_id
            self.expressions.append(Expression(name, text, (len(self.instances),)))
        self.instances.append(instance)

    def add_negatives(self, phrases: Sequence[str]) -> None:
        """Add phrases that refer to nothing."""
        self.expressions += [Expression("", text, ()) for text in phrases]


@dataclass(frozen=True)
class Wording:
    """Rules that turn labels into rows, with the text of each row."""

    per: Literal["auto", "category", "instance"] = "auto"
    text: str = "{category}"
    text_many: str | None = None  # text for several instances, `text` by default
    text_field: str | None = None  # field of a COCO annotation with its text
    no_target: int = 0  # rows per image for absent categories
    seed: int = 0
    split: str | None = None

    def __post_init__(self) -> None:
        if self.text_field is not None and self.per == "category":
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


@dataclass
class Skipped:
    """Number of skipped entries and the first one, by reason, and the phrases that objects share."""

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
                f"joined: {len(self.joined):,} phrases that several objects of an image share; each is one row "
                f"that refers to all of them (first: {self.joined[0]}). If one object is meant, change its text"
            )
        return lines


# Rows -----------------------------------------------------------------------------------------------------------------


def to_rows(
    images: Sequence[LabeledImage], categories: Mapping[str, str], wording: Wording, base: Path, skipped: Skipped
) -> Iterator[Row]:
    """Yield the rows of all images.

    Args:
        images: The labels.
        categories: Names of all categories, each with a short key that goes into ids of expressions.
        wording: The texts.
        base: Folder that image paths of the rows are relative to.
        skipped: Collects what cannot be used.
    """
    has_phrases = wording.text_field is not None or (
        wording.per == "auto" and any(expression.referents for image in images for expression in image.expressions)
    )
    rng = random.Random(wording.seed)
    folder_of = lru_cache(maxsize=1000)(lambda folder: path_to(folder, base))
    for image in images:
        folder, name = os.path.split(image.image_path)
        path = (folder_of(Path(folder)) / name).as_posix()
        if not is_text(path):
            skipped.add("images with a name that is not UTF-8", repr(image.image_path))
            continue
        head: Row = {"image": path, "size": list(image.size)}
        split = wording.split or image.split
        if split:
            head["split"] = split
        own = [expression for expression in image.expressions if has_phrases or not expression.referents]
        worded = [] if has_phrases else _name_by_category(image, categories, wording)
        joined = _join([*own, *worded], image, skipped)
        if has_phrases:
            _count_without_phrase(image, wording, skipped)
        for expression in [*joined, *_absent(image, joined, categories, wording, rng, skipped)]:
            yield {**_row(expression, image), **head}


def _name_by_category(image: LabeledImage, categories: Mapping[str, str], wording: Wording) -> Iterator[Expression]:
    """Yield phrases made from the names of categories."""
    members: dict[str, list[int]] = {}
    for index, instance in enumerate(image.instances):
        if not instance.is_crowd and instance.category in categories:
            members.setdefault(instance.category, []).append(index)
    for category, indices in members.items():
        if wording.per == "instance":
            for index in indices:
                name = f"{image.image_id}-{image.instances[index].instance_id}"
                yield Expression(name, wording.of_category(category, 1), (index,))
        else:
            name = f"{image.image_id}-c{categories[category]}"
            yield Expression(name, wording.of_category(category, len(indices)), tuple(indices))


def _join(expressions: Sequence[Expression], image: LabeledImage, skipped: Skipped) -> list[Expression]:
    """Join expressions of the same text. A phrase without target must not refer to something elsewhere."""
    by_text: dict[str, Expression] = {}
    joined: dict[str, str] = {}
    refers = {plain_text(expression.text) for expression in expressions if expression.referents}
    for expression in expressions:
        text = plain_text(expression.text)
        first = by_text.setdefault(text, expression)
        if not expression.referents and text in refers:
            if first is expression:
                del by_text[text]
            reason = "phrases without target that refer to something in their image"
            skipped.add(reason, f"{expression.text!r}, {image.image_id}")
        elif first is not expression:
            known = {image.instances[index].instance_id for index in first.referents}
            new = [index for index in expression.referents if image.instances[index].instance_id not in known]
            first.referents += tuple(new)
            if new:
                joined[text] = f"{first.text!r} of image {image.image_id}"
    skipped.joined += joined.values()
    return list(by_text.values())


def _count_without_phrase(image: LabeledImage, wording: Wording, skipped: Skipped) -> None:
    named = {image.instances[index].instance_id for expression in image.expressions for index in expression.referents}
    for instance in image.instances:
        if instance.instance_id not in named and not instance.is_crowd:
            field = wording.text_field
            reason = "objects without a phrase" if field is None else f"annotations without text in {field!r}"
            skipped.add(reason, f"id {instance.instance_id} of image {image.image_id}")


def _absent(
    image: LabeledImage,
    expressions: Sequence[Expression],
    categories: Mapping[str, str],
    wording: Wording,
    rng: random.Random,
    skipped: Skipped,
) -> Iterator[Expression]:
    """Yield phrases for random categories that the image does not contain."""
    texts = {plain_text(expression.text) for expression in expressions}
    absent = [category for category in categories if category not in image.present]
    chosen = rng.sample(absent, min(wording.no_target, len(absent)))
    for category in sorted(chosen, key=lambda category: categories[category]):
        text = wording.of_category(category, 1)
        if plain_text(text) in texts:
            reason = "phrases without target that refer to something in their image"
            skipped.add(reason, f"{text!r}, {image.image_id}")
        else:
            yield Expression(f"{image.image_id}-n{categories[category]}", text, ())


def _row(expression: Expression, image: LabeledImage) -> Row:
    """Return the row of an expression without its image."""
    row: Row = {"expression_id": expression.expression_id} if expression.expression_id else {}
    row |= {"text": expression.text, "targets": None}
    if expression.referents:
        instances = [image.instances[index] for index in expression.referents]
        row["targets"] = [to_json(instance.segmentation) for instance in instances]
        row["instance_ids"] = [instance.instance_id for instance in instances]
        crowds = {instance.category for instance in image.instances if instance.is_crowd}
        if crowds & {instance.category for instance in instances}:
            row["tags"] = {"crowd": True}
    return row


# Values in files of tools ---------------------------------------------------------------------------------------------


def to_json(segmentation: Any) -> Any:
    return rle_to_json(segmentation) if isinstance(segmentation, dict) else segmentation


def to_target(segmentation: Any, size: tuple[int, int]) -> Any:
    """Return polygons or an RLE as JSON, or raise a ValueError that says what is wrong."""
    return to_json(clean_segmentation(segmentation, size))


def phrases_in(value: Any) -> list[str]:
    """Return the phrases in a field of a file: a list of texts, or a text with one phrase per line."""
    texts = value.splitlines() if isinstance(value, str) else value if isinstance(value, list) else []
    return list(dict.fromkeys(text.strip() for text in texts if is_text(text)))


def phrases_by_instance(record: Record) -> list[list[str]]:
    """Return the phrases that refer to each instance of a record."""
    phrases: list[list[str]] = [[] for _ in record.instances]
    for expression in record.expressions:
        for index in expression.referents:
            phrases[index].append(expression.text)
    return phrases


def negatives_of(record: Record) -> list[str]:
    """Return the phrases of a record that refer to nothing."""
    return [expression.text for expression in record.expressions if not expression.referents]


def find_image(folder: Path, name: str) -> Path | None:
    """Return the file of an image in or below a folder: at its whole path, or under its bare name."""
    name = name.replace("\\", "/")
    candidates = [folder / name, folder / name.rsplit("/", 1)[-1]]
    return next((path for path in candidates if os.path.isfile(path)), None)


def size_of(path: Path, height: Any = None, width: Any = None) -> tuple[int, int]:
    """Return (height, width) from a file of labels, or from the image if they are missing.

    Raises:
        DataError: The image cannot be read.
    """
    if is_side(height) and is_side(width):
        return height, width
    with open_image(str(path)) as image:
        return image.height, image.width


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"no such folder of images: {folder}")
