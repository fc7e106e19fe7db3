"""`refseg data leaks`: find training images that are also in test sets, and print the filter that drops them."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.datasets.annotations import open_annotations
from refseg.datasets.images import read_image
from refseg.datasets.selection import in_splits, key_of, split_matches
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target, parse_target
from refseg.processes import usable_cores
from refseg.terminal import aligned


@dataclass
class Part:
    """Some splits of a data set, and what identifies each of their images."""

    target: Target
    splits: list[str] | None
    store: RecordStore
    keys: dict[int, str]

    @property
    def name(self) -> str:
        return self.target.name + (f":{','.join(self.splits)}" if self.splits else "")

    def image_keys(self, split: str | None = None) -> set[str]:
        """Return what identifies the images of a split, or of all splits of this part."""
        chosen = in_splits(self.store, self.splits if split is None else split)
        return {self.keys[image] for image in np.unique(self.store.image_of_expression[chosen]).tolist()}

    def count(self, keys: set[str] | None = None) -> tuple[int, int, int]:
        """Count the images, refs, and sentences of this part: all of them, or those on images with certain keys."""
        store = self.store
        images = np.array([image for image, key in self.keys.items() if keys is None or key in keys], np.int64)
        chosen = in_splits(store, self.splits) & np.isin(store.image_of_expression, images)
        return len(images), len(np.unique(store.object_of_expression[chosen])), int(chosen.sum())


def main(args: argparse.Namespace) -> int:
    train, test = (
        [part for name in names for part in open_parts(name, for_training=for_training, by_content=args.by_content)]
        for names, for_training in ((args.train, True), (args.test, False))
    )
    # A row per training part and test split
    rows = [["train set", "images", "refs", "sentences", "test set"]]
    for part in train:
        for other in test:
            for split in other.splits or [None]:
                name = other.target.name + (f":{split}" if split else "")
                rows.append([part.name, *_cells(part.count(other.image_keys(split)), part.count()), name])
    print("\n".join(aligned(rows)))
    # A row per training part for all test sets together
    print("\nAll test sets together:")
    keys = set().union(*(other.image_keys() for other in test))
    rows, any_shared = [["train set", "images", "refs", "sentences", ""]], False
    for part in train:
        shared, whole = part.count(keys), part.count()
        any_shared |= shared[0] > 0
        remaining = f"{whole[0] - shared[0]:,} images, {whole[2] - shared[2]:,} sentences remain"
        rows.append([part.name, *_cells(shared, whole), remaining])
    print("\n".join(aligned(rows)))
    # The filter
    if any_shared:
        print("\nTo drop them, add this to the training data set of the config:\n")
        print("\n".join(filter_lines(test)))
        if args.by_content:
            print("\nThis filter compares COCO ids, names, and sizes. It misses what only --by-content finds.")
    else:
        print("\nNo image is shared.")
    return 1 if any_shared and args.fail else 0


def open_parts(argument: str, *, for_training: bool, by_content: bool) -> list[Part]:
    """Open the data sets of an argument SET[:SPLIT].

    Args:
        argument: The argument.
        for_training: Without SPLIT, use the split train instead of all others.
        by_content: Identify images by their pixels.
    """
    targets, splits = parse_target(argument)
    parts = []
    for target in targets:
        store = open_annotations(**target.annotations)
        chosen = splits
        if chosen is None and for_training:
            chosen = ["train"] if "train" in store.splits else None
        elif chosen is None:
            # Published names of splits, then tags that belong to none of them
            known = [s for s in target.counts if s != "train" and any(split_matches(s, tag) for tag in store.splits)]
            tags = {tag for tag in store.splits if not any(split_matches(s, tag) for s in known)}
            chosen = [*known, *sorted(tag for tag in tags if tag not in (None, "train"))] or None  # type: ignore[type-var]
        images = np.unique(store.image_of_expression[in_splits(store, chosen)]).tolist()
        if by_content:
            keys = content_keys(store, target, images)
        else:
            keys = {image: key_of(store, image, target.images) for image in images}
        parts.append(Part(target, chosen, store, keys))
    return parts


def _cells(numbers: Sequence[int], totals: Sequence[int]) -> list[str]:
    return [f"{n:,} of {total:,} ({n / max(total, 1):.1%})" for n, total in zip(numbers, totals, strict=True)]


def filter_lines(test: Sequence[Part]) -> list[str]:
    """Return `exclude_images_of` as it is written in a config."""
    lines = ["exclude_images_of=["]
    for part in test:
        annotations = ", ".join(f"{key}={value!r}" for key, value in part.target.annotations.items())
        splits: Any = part.splits[0] if part.splits and len(part.splits) == 1 else part.splits
        root = f", image_root={part.target.image_root!r}" if part.target.image_root else ""
        lines.append(f"    dict(annotations=dict({annotations}){root}, split={splits!r}),")
    return [*lines, "],"]


def content_keys(store: RecordStore, target: Target, images: list[int]) -> dict[int, str]:
    """Return a hash of the decoded pixels of each image."""
    from tqdm import tqdm

    def key(image: int) -> str:
        record = store.record(image, ())
        pixels = read_image(str(target.images / record.image_path), record.size)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor(usable_cores()) as pool:
        bar = tqdm(pool.map(key, images), total=len(images), desc=target.name, unit="image", leave=False, disable=None)
        return dict(zip(images, bar, strict=True))
