"""Examples on the web page: images and phrases that come with the model, of its test split, or of a file."""

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
from refseg.shipped import EXAMPLES

MAX_EXAMPLES = 6  # on the page


@dataclass(frozen=True, slots=True)
class Example:
    image: Path
    phrases: tuple[str, ...]


def default_examples(config: Path) -> list[Example]:
    """Read `examples.jsonl` beside a config, or else choose from its test split, if that is an existing JSONL file."""
    if (config.parent / EXAMPLES).is_file():
        return read_examples(str(config.parent / EXAMPLES))
    dataset = (load_config(str(config), RunOptions()).get("test_dataloader") or {}).get("dataset") or {}
    annotations = dataset.get("annotations") or {}
    if annotations.get("format") != "jsonl":
        return []
    file = data_path(annotations["file"])
    return choose_examples(read_jsonl(file=file).records, dataset.get("split"), file.parent) if file.is_file() else []


def choose_examples(records: Iterable[Record], split: str | None, root: Path) -> list[Example]:
    """Choose the first images of a split, each with a single-target, a multi-target, and a no-target phrase."""
    examples: list[Example] = []
    for record in records:
        by_kind: dict[int, Expression] = {}
        for expression in record.expressions:
            if split is None or expression.split == split:
                by_kind.setdefault(min(len(expression.referents), 2), expression)
        phrases = tuple(by_kind[kind].text for kind in (1, 2, 0) if kind in by_kind)
        if phrases:
            examples.append(Example(root / record.image_path, phrases))
        if len(examples) == MAX_EXAMPLES:
            break
    return examples


def read_examples(file: str) -> list[Example]:
    """Read examples from a file of the same format as `refseg predict --jsonl`."""
    texts_by_image: dict[str, list[str]] = {}
    for image, text, _ in read_tasks(file):
        texts_by_image.setdefault(image, []).append(text)
    return [Example(Path(image), tuple(texts)) for image, texts in texts_by_image.items()]


def copy_examples(examples: Iterable[Example], folder: Path) -> list[Example]:
    """Copy the images that exist into the page's folder, because it serves no other files."""
    copies = []
    for number, example in enumerate(examples):
        if example.image.is_file():
            (folder / str(number)).mkdir(parents=True)
            copies.append(Example(Path(shutil.copy(example.image, folder / str(number))), example.phrases))
    return copies
