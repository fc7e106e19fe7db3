"""Images and phrases that the page offers to try: from the data that the model was tested on, or from a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from refseg.datasets.readers.jsonl import read_jsonl
from refseg.engine.run import RunOptions, load_config
from refseg.inference.predict import read_jsonl as read_tasks
from refseg.paths import data_path
from refseg.records import Expression, Record

MOST = 6


@dataclass(frozen=True, slots=True)
class Example:
    image: Path
    phrases: tuple[str, ...]


def of_test_split(config: Path) -> list[Example]:
    """Of the test split that a config names, if that is JSONL, as RefShapes is, and here; none otherwise."""
    dataset = (load_config(str(config), RunOptions()).get("test_dataloader") or {}).get("dataset") or {}
    annotations = dataset.get("annotations") or {}
    if annotations.get("format") != "jsonl":
        return []
    file = data_path(annotations["file"])
    return choose(read_jsonl(file=file).records, dataset.get("split"), file.parent) if file.is_file() else []


def choose(records: Iterable[Record], split: str | None, root: Path) -> list[Example]:
    """The first images of the split. Of each, a phrase for one object, one for several and one for none, if there are
    such."""
    examples: list[Example] = []
    for record in records:
        by_kind: dict[int, Expression] = {}
        for expression in record.expressions:
            if split is None or expression.split == split:
                by_kind.setdefault(min(len(expression.referents), 2), expression)
        phrases = tuple(by_kind[kind].text for kind in (1, 2, 0) if kind in by_kind)
        if phrases and len(examples) < MOST:
            examples.append(Example(root / record.image_path, phrases))
    return examples


def examples_in(file: str) -> list[Example]:
    """Of lines {"image", "texts"} or {"image", "text"}, as `refseg predict --jsonl` reads them."""
    of_image: dict[str, list[str]] = {}
    for image, text, _ in read_tasks(file):
        of_image.setdefault(image, []).append(text)
    return [Example(Path(image), tuple(texts)) for image, texts in of_image.items()]


def copied(examples: Iterable[Example], folder: Path) -> list[Example]:
    """With copies of the images that are there: the page serves files of its own folder only."""
    found = []
    for number, one in enumerate(examples):
        if one.image.is_file():
            (folder / str(number)).mkdir(parents=True)
            found.append(Example(Path(shutil.copy(one.image, folder / str(number))), one.phrases))
    return found
