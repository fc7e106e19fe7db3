"""Which expressions of a store a data set uses, and how they are dealt out into items. Pure functions of arrays.

Letters: X expressions of a store, I images, P the chosen expressions ("the pool"), K expressions of an item.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from refseg.datasets.image_keys import image_key
from refseg.datasets.store import RecordStore
from refseg.errors import ConfigError, DataError

Sentences = Literal["all", "one_per_object"]


def split_matches(asked: str, tag: str | None) -> bool:
    """REFER's rule (of its `getRefIds`): "testA" means every split that names A, so that RefCLEF's "testAB" counts in
    two; "test" means every test split; all else must be equal."""
    if tag is None or asked == tag:
        return asked == tag
    if not tag.startswith("test"):
        return False
    return asked == "test" or (asked in ("testA", "testB", "testC") and asked[-1] in tag[4:])


def in_splits(store: RecordStore, asked: str | Sequence[str] | None) -> np.ndarray:
    """(X,) bool: expressions of these splits; None is all. A split that no expression has is an error."""
    if asked is None:
        return np.ones(store.num_expressions, bool)
    wanted = [asked] if isinstance(asked, str) else list(asked)
    codes: set[int] = set()
    for one in wanted:
        # A set with a split "test" beside testA and testB means that one (no set that REFER reads has both).
        exact = one == "test" and one in store.splits
        found = [c for c, tag in enumerate(store.splits) if (tag == one if exact else split_matches(one, tag))]
        if not found:
            there = ", ".join(sorted(str(tag) for tag in store.splits)) or "none: there are no expressions"
            raise DataError(f"no expression has split {one!r} (found: {there})")
        codes.update(found)
    return np.isin(store.split_of_expression, sorted(codes))


@cache
def shipped_categories(part: str) -> tuple[str, ...]:
    """`seen` or `unseen`: the split of COCO's classes in coco_seen_unseen.json, which names its source."""
    shipped = json.loads((Path(__file__).parent / "coco_seen_unseen.json").read_text(encoding="utf-8"))
    if part not in ("seen", "unseen"):
        raise ConfigError(f"categories must be 'seen', 'unseen' or a list of names, not {part!r}")
    return tuple(shipped[part])


def of_categories(store: RecordStore, categories: str | Sequence[str]) -> np.ndarray:
    """(X,) bool: expressions with referents, all of them of these categories (the seen/unseen protocol)."""
    names = shipped_categories(categories) if isinstance(categories, str) else tuple(categories)
    absent = [] if isinstance(categories, str) else [name for name in names if name not in store.categories]
    if absent:
        close = difflib.get_close_matches(absent[0], store.categories, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(store.categories[:20])}"
        raise ConfigError(f"categories: no instance is a {absent[0]!r}; {hint}")
    allowed = [code for code, name in enumerate(store.categories) if name in names]
    if not allowed:
        there = ", ".join(store.categories[:10]) or "none"
        raise DataError(f"no instance has one of the categories {', '.join(names[:10])} ... (categories here: {there})")
    return refer_only_to(store, np.isin(store.category_of_instance, allowed))


def num_referents_among(store: RecordStore, instances: np.ndarray) -> np.ndarray:
    """(X,) how many of each expression's referents are among these instances, a bool for each of the store's."""
    first_instance = np.repeat(store.instance_starts[store.image_of_expression], store.num_referents)
    among = instances[first_instance + store.arrays["referents"]]
    return np.diff(np.concatenate([[0], np.cumsum(among)])[store.arrays["referents.starts"]])


def refer_only_to(store: RecordStore, instances: np.ndarray) -> np.ndarray:
    """(X,) bool: expressions with referents, all of them among these instances."""
    return (store.num_referents > 0) & (num_referents_among(store, instances) == store.num_referents)


def key_of(store: RecordStore, image: int, root: str | Path) -> str:
    return image_key(str(Path(root, store.image_path(image))), store.size(image))


def image_keys(store: RecordStore, chosen: np.ndarray, root: str | Path = "") -> set[str]:
    """Keys of the images that the chosen (X,) expressions are about; `root`: the image root of the set."""
    return {key_of(store, image, root) for image in np.unique(store.image_of_expression[chosen])}


def of_other_images(store: RecordStore, keys: Iterable[str], root: str | Path = "") -> np.ndarray:
    """(X,) bool: expressions of images that are not among these."""
    keys = set(keys)
    other = np.array([key_of(store, image, root) not in keys for image in range(len(store))], bool)
    return other[store.image_of_expression]


def held_out(store: RecordStore, share: float, root: str | Path = "") -> np.ndarray:
    """(X,) bool: expressions of a fixed `share` of the images, told by a hash of what image it is, so that an image is
    held out of every set or of none."""
    limit = int(share * 2**32)
    out = [zlib.crc32(key_of(store, image, root).encode()) < limit for image in range(len(store))]
    return np.array(out, bool)[store.image_of_expression]


@dataclass(frozen=True)
class Items:
    """How a pool is dealt out: item i is part `part[i]` of the `num_parts[i]` of image `image[i]`.

    `starts` (I + 1,) and `pool` (P,): the chosen expressions of image i are pool[starts[i] : starts[i + 1]].
    """

    image: np.ndarray
    part: np.ndarray
    num_parts: np.ndarray
    starts: np.ndarray
    pool: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def deal(store: RecordStore, chosen: np.ndarray, sentences: Sentences, per_image: int | None) -> Items:
    """Each image's pool is dealt into as few items of at most `per_image` expressions as it takes (None: one item).

    An epoch so takes every expression once, or, with `one_per_object`, one of each object. LAVT's protocol is
    `one_per_object` with 1 per image: an item per ref. ReLA's is `all` with 1: an item per sentence.
    """
    pool = np.flatnonzero(chosen)
    images = store.image_of_expression[pool]
    starts = np.searchsorted(images, np.arange(len(store) + 1))
    if sentences == "one_per_object":
        objects = store.object_of_expression[pool]
        drawn = np.unique(np.stack([images, objects], 1), axis=0)[:, 0] if len(pool) else images
        counts = np.bincount(drawn, minlength=len(store))
    else:
        counts = np.diff(starts)
    parts = (counts > 0).astype(np.int64) if per_image is None else -(-counts // per_image)
    image = np.repeat(np.arange(len(store)), parts)
    part = np.arange(len(image)) - np.repeat(np.cumsum(parts) - parts, parts)
    return Items(image, part, parts[image], starts, pool)


def expressions_of(
    items: Items, item: int, objects: np.ndarray, sentences: Sentences, *, seed: int, epoch: int
) -> np.ndarray:
    """Indices of an item's expressions, in the file's order. The draws are functions of (seed, epoch, image), so that
    the items of an image share out the same draw."""
    image = int(items.image[item])
    pool = items.pool[items.starts[image] : items.starts[image + 1]]
    rng = np.random.default_rng([seed, epoch, image, 1])
    if sentences == "one_per_object":
        mixed = rng.permutation(pool)
        _, first = np.unique(objects[mixed], return_index=True)
        pool = mixed[first]
    if items.num_parts[item] > 1:
        pool = np.array_split(rng.permutation(pool), items.num_parts[item])[items.part[item]]
    return np.sort(pool)
