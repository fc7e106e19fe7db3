"""`refseg data leaks`: which training images are also images of test sets, and the filter that drops them."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.data_tools.check_images import usable_cores
from refseg.datasets.annotations import open_annotations
from refseg.datasets.images import read_image
from refseg.datasets.selection import image_keys, in_splits, key_of, split_matches
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target, parse_target
from refseg.terminal import aligned


@dataclass
class Part:
    """Splits of a data set. `keys[i]`: what tells image i of the store from others."""

    target: Target
    splits: list[str] | None
    store: RecordStore
    keys: dict[int, str]

    def chosen(self, split: str | None = None) -> np.ndarray:
        """(X,) bool over the store's expressions."""
        return in_splits(self.store, self.splits if split is None else split)

    def key_set(self, chosen: np.ndarray) -> set[str]:
        if not self.keys:
            return image_keys(self.store, chosen, self.target.images)
        return {self.keys[image] for image in np.unique(self.store.image_of_expression[chosen]).tolist()}

    @property
    def name(self) -> str:
        return self.target.name + (f":{','.join(self.splits)}" if self.splits else "")


@dataclass(frozen=True)
class Overlap:
    """What of a training part lies on shared images."""

    images: int
    refs: int
    sentences: int


def main(args: argparse.Namespace) -> int:
    train = [part for argument in args.train for part in open_part(argument, ("train",), args.by_content)]
    test = [part for argument in args.test for part in open_part(argument, None, args.by_content)]
    rows = [["train set", "images", "refs", "sentences", "test set"]]
    rows += overlap_rows(train, test)
    print("\n".join(aligned(rows)))
    print("\nAll test sets together:")
    totals = [total_row(part, test) for part in train]
    print("\n".join(aligned([["train set", "images", "refs", "sentences", ""], *(row for row, _ in totals)])))
    any_overlap = any(overlap.images for _, overlap in totals)
    if any_overlap:
        print("\nTo leave them out, in the config's training data set:\n")
        print("\n".join(filter_lines(test)))
        if args.by_content:
            print("\nThis filter goes by COCO ids, names and sizes: it does not see what only --by-content finds.")
    else:
        print("\nNo image is shared.")
    return 1 if any_overlap and args.fail else 0


def open_part(argument: str, default: Sequence[str] | None, by_content: bool) -> list[Part]:
    targets, splits = parse_target(argument)
    parts = []
    for target in targets:
        store = open_annotations(**target.annotations)
        chosen = splits
        if chosen is None and default is not None:
            chosen = [split for split in default if split in store.splits] or None
        elif chosen is None:
            chosen = _evaluation_splits(target, store)
        in_splits(store, chosen)  # says which split is missing
        parts.append(Part(target, chosen, store, content_keys(store, target, chosen) if by_content else {}))
    return parts


def _evaluation_splits(target: Target, store: RecordStore) -> list[str] | None:
    """All splits that are there but train, by the names that are used for them; None where there is no other."""
    known = [s for s in target.counts if s != "train" and any(split_matches(s, tag) for tag in store.splits)]
    tags = [tag for tag in store.splits if tag not in (None, "train") and not any(split_matches(s, tag) for s in known)]
    return [*known, *sorted(tags)] or None  # type: ignore[type-var]


def overlap_of(part: Part, keys: set[str]) -> Overlap:
    chosen = part.chosen()
    images = np.unique(part.store.image_of_expression[chosen])
    own = part.keys or {i: key_of(part.store, i, part.target.images) for i in images.tolist()}
    shared = [i for i in images.tolist() if own[i] in keys]
    hit = chosen & np.isin(part.store.image_of_expression, shared)
    return Overlap(len(shared), len(np.unique(part.store.object_of_expression[hit])), int(hit.sum()))


def size_of(part: Part) -> Overlap:
    chosen = part.chosen()
    images, objects = part.store.image_of_expression[chosen], part.store.object_of_expression[chosen]
    return Overlap(len(np.unique(images)), len(np.unique(objects)), int(chosen.sum()))


def overlap_rows(train: Sequence[Part], test: Sequence[Part]) -> list[list[str]]:
    rows = []
    for part in train:
        whole = size_of(part)
        for other in test:
            for split in other.splits or [None]:
                found = overlap_of(part, other.key_set(other.chosen(split)))
                name = other.target.name + (f":{split}" if split else "")
                rows.append([part.name, *_cells(found, whole), name])
    return rows


def total_row(part: Part, test: Sequence[Part]) -> tuple[list[str], Overlap]:
    keys: set[str] = set()
    for other in test:
        keys |= other.key_set(other.chosen())
    whole, found = size_of(part), overlap_of(part, keys)
    left = f"{whole.images - found.images:,} images, {whole.sentences - found.sentences:,} sentences are left"
    return [part.name, *_cells(found, whole), left], found


def _cells(found: Overlap, whole: Overlap) -> list[str]:
    return [
        f"{part:,} of {total:,} ({part / max(total, 1):.1%})"
        for part, total in zip(vars(found).values(), vars(whole).values(), strict=True)
    ]


def filter_lines(test: Sequence[Part]) -> list[str]:
    """`exclude_images_of`, to be pasted into a config."""
    lines = ["exclude_images_of=["]
    for part in test:
        annotations = ", ".join(f"{key}={value!r}" for key, value in part.target.annotations.items())
        splits: Any = part.splits[0] if part.splits and len(part.splits) == 1 else part.splits
        root = f", image_root={part.target.image_root!r}" if part.target.image_root else ""
        lines.append(f"    dict(annotations=dict({annotations}){root}, split={splits!r}),")
    return [*lines, "],"]


def content_keys(store: RecordStore, target: Target, splits: list[str] | None) -> dict[int, str]:
    """A hash of the decoded pixels of each image that has expressions of these splits."""
    from tqdm import tqdm

    images = np.unique(store.image_of_expression[in_splits(store, splits)]).tolist()

    def key(image: int) -> str:
        record = store.record(image, ())
        pixels = read_image(str(target.images / record.image_path), record.size)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor(usable_cores()) as pool:
        bar = tqdm(pool.map(key, images), total=len(images), desc=target.name, unit="image", leave=False, disable=None)
        return dict(zip(images, bar, strict=True))
