"""Selection of the expressions that a data set uses, and their grouping into items. Pure functions of arrays.

Letters: X expressions of a store, I images, P chosen expressions ("the pool"), K expressions of an item.
"""

from __future__ import annotations

import difflib
import json
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from refseg.datasets.store import RecordStore
from refseg.errors import ConfigError, DataError

Sentences = Literal["all", "one_per_object"]
_COCO_2014 = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})\.\w+")
_COCO_2017 = re.compile(r"(?:train|val|test)2017/(\d{12})\.\w+")


def split_matches(split: str, tag: str | None) -> bool:
    """Return whether an expression tagged `tag` belongs to `split`, by the rule of REFER's `getRefIds`.

    "testA" matches every test tag that names A, so RefCLEF's "testAB" counts in two splits. "test" matches every test
    tag. Any other split must be equal.
    """
    if tag is None or split == tag:
        return split == tag
    if not tag.startswith("test"):
        return False
    return split == "test" or (split in ("testA", "testB", "testC") and split[-1] in tag[4:])


def in_splits(store: RecordStore, splits: str | Sequence[str] | None) -> np.ndarray:
    """Return (X,) bool: expressions of these splits, None for all. A split without expressions is an error."""
    if splits is None:
        return np.ones(store.num_expressions, bool)
    codes: set[int] = set()
    for split in [splits] if isinstance(splits, str) else splits:
        # A set with a split "test" beside testA and testB means that one (no set that REFER reads has both).
        exact = split == "test" and split in store.splits
        matching = [c for c, tag in enumerate(store.splits) if (tag == split if exact else split_matches(split, tag))]
        if not matching:
            available = ", ".join(sorted(str(tag) for tag in store.splits)) or "none: there are no expressions"
            raise DataError(f"no expression has split {split!r} (available: {available})")
        codes.update(matching)
    return np.isin(store.split_of_expression, sorted(codes))


# Categories -----------------------------------------------------------------------------------------------------------


@cache
def shipped_categories(part: str) -> tuple[str, ...]:
    """Return COCO's `seen` or `unseen` classes from coco_seen_unseen.json, which names its source."""
    shipped = json.loads((Path(__file__).parent / "coco_seen_unseen.json").read_text(encoding="utf-8"))
    if part not in ("seen", "unseen"):
        raise ConfigError(f"categories must be 'seen', 'unseen' or a list of names, not {part!r}")
    return tuple(shipped[part])


def of_categories(store: RecordStore, categories: str | Sequence[str]) -> np.ndarray:
    """Return (X,) bool: expressions with referents, all of them of these categories (the seen/unseen protocol)."""
    names = shipped_categories(categories) if isinstance(categories, str) else tuple(categories)
    absent = [] if isinstance(categories, str) else [name for name in names if name not in store.categories]
    if absent:
        close = difflib.get_close_matches(absent[0], store.categories, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"available: {', '.join(store.categories[:20])}"
        raise ConfigError(f"categories: no instance is a {absent[0]!r}; {hint}")
    allowed = [code for code, name in enumerate(store.categories) if name in names]
    if not allowed:
        available = ", ".join(store.categories[:10]) or "none"
        raise DataError(f"no instance has one of the categories {', '.join(names[:10])} ... (available: {available})")
    return refer_only_to(store, np.isin(store.category_of_instance, allowed))


def num_referents_among(store: RecordStore, instances: np.ndarray) -> np.ndarray:
    """Return (X,): the number of each expression's referents that a bool array over all instances selects."""
    first_instance = np.repeat(store.instance_starts[store.image_of_expression], store.num_referents)
    among = instances[first_instance + store.arrays["referents"]]
    return np.diff(np.concatenate([[0], np.cumsum(among)])[store.arrays["referents.starts"]])


def refer_only_to(store: RecordStore, instances: np.ndarray) -> np.ndarray:
    """Return (X,) bool: expressions with referents, all of which a bool array over all instances selects."""
    return (store.num_referents > 0) & (num_referents_among(store, instances) == store.num_referents)


# Images ---------------------------------------------------------------------------------------------------------------


def image_key(path: str, size: tuple[int, int]) -> str:
    """Return a key that is equal for the same image in different data sets.

    Files that COCO named get `coco:<id>`: train, val, 2014 and 2017 share one numbering, and the bare numbers of 2017
    need a folder of that name. Other files get their name with its folder and size. The folder distinguishes 00001.jpg
    of one clip from that of another. Only `refseg data leaks --by-content` recognizes images in a renamed folder.
    """
    place = PurePosixPath(path.replace("\\", "/"))
    coco = _COCO_2014.fullmatch(place.name) or _COCO_2017.fullmatch("/".join(place.parts[-2:]))
    return f"coco:{int(coco[1])}" if coco else f"{'/'.join(place.parts[-2:])}:{size[0]}x{size[1]}"


def key_of(store: RecordStore, image: int, root: str | Path) -> str:
    """Return the key of an image of a store, whose paths start at `root`."""
    return image_key(str(Path(root, store.image_path(image))), store.size(image))


def image_keys(store: RecordStore, chosen: np.ndarray, root: str | Path = "") -> set[str]:
    """Return the keys of the images of the chosen (X,) expressions."""
    return {key_of(store, image, root) for image in np.unique(store.image_of_expression[chosen])}


def held_out(store: RecordStore, share: float, root: str | Path = "") -> np.ndarray:
    """Return (X,) bool: expressions of a fixed `share` of the images.

    A hash of the image's key decides, so an image is held out of every data set or of none.
    """
    limit = int(share * 2**32)
    out = [zlib.crc32(key_of(store, image, root).encode()) < limit for image in range(len(store))]
    return np.array(out, bool)[store.image_of_expression]


# Items ----------------------------------------------------------------------------------------------------------------


class Items:
    """Items of a data set: each image's chosen expressions, in as few items of at most `per_image` as possible.

    An epoch takes every expression once, or one of each object with `one_per_object`. LAVT's protocol is
    `one_per_object` with 1 per image: an item per ref. ReLA's is `all` with 1: an item per sentence.

    Item i is part `part[i]` of `num_parts[i]` parts of image `image[i]`. The chosen expressions of image j are
    pool[starts[j] : starts[j + 1]], with `starts` (I + 1,) and `pool` (P,).

    Args:
        store: The records.
        chosen: (X,) bool.
        sentences: "all" or "one_per_object".
        per_image: Largest number of expressions of an item. None puts all of an image into one item.
    """

    def __init__(self, store: RecordStore, chosen: np.ndarray, sentences: Sentences, per_image: int | None) -> None:
        self.sentences = sentences
        self.objects = store.object_of_expression
        self.pool = np.flatnonzero(chosen)
        images = store.image_of_expression[self.pool]
        self.starts = np.searchsorted(images, np.arange(len(store) + 1))
        counts = np.diff(self.starts)
        if sentences == "one_per_object":
            # An object belongs to one image: count each at its first expression.
            _, first = np.unique(self.objects[self.pool], return_index=True)
            counts = np.bincount(images[first], minlength=len(store))
        parts = (counts > 0).astype(np.int64) if per_image is None else -(-counts // per_image)
        self.image = np.repeat(np.arange(len(store)), parts)
        self.part = np.arange(len(self.image)) - np.repeat(np.cumsum(parts) - parts, parts)
        self.num_parts = parts[self.image]

    def __len__(self) -> int:
        return len(self.image)

    def expressions_of(self, item: int, *, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of an item's expressions, in the file's order.

        The draws depend on (seed, epoch, image) only, so the items of an image share the same draw.
        """
        image = int(self.image[item])
        pool = self.pool[self.starts[image] : self.starts[image + 1]]
        rng = np.random.default_rng([seed, epoch, image, 1])
        if self.sentences == "one_per_object":
            shuffled = rng.permutation(pool)
            _, first = np.unique(self.objects[shuffled], return_index=True)
            pool = shuffled[first]
        if self.num_parts[item] > 1:
            pool = np.array_split(rng.permutation(pool), self.num_parts[item])[self.part[item]]
        return np.sort(pool)
