"""Checks shared by the readers: JSON files, segmentations, boxes, image sizes, texts and flags.

Everything that C code will see later is checked here. pycocotools reads and writes beyond its arrays if the runs of an
RLE do not add up to the image or if there are more runs than pixels. It takes a run of 0 inside an RLE for the end, and
allocates memory by the length of a polygon's edges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.records import Segmentation

MAX_SIDE = 100_000  # pixels; a larger image would be a mistake or an attack
MAX_RLE_PIXELS = 2**29  # pycocotools' compressed form cannot store greater differences of runs
MAX_BEYOND = 10  # times the image's longer side; pycocotools walks along every edge of a polygon


class BadEntry(ValueError):
    """One entry of an annotation file that cannot be used. The message says why."""


def load_json(file: Path) -> Any:
    """Parse a JSON file, or raise DataError if it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: truncated, or not JSON ({error})") from None


def is_text(value: Any) -> bool:
    """Return whether a value is a text that is not blank and can be encoded (JSON may hold half a character)."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def plain_text(text: str) -> str:
    """Normalize case and spaces, so that the same phrase has the same text."""
    return " ".join(text.casefold().split())


def is_side(value: Any) -> bool:
    """Return whether a value is a possible height or width of an image."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def image_size(entry: Any) -> tuple[int, int]:
    """Return (height, width) of an entry that has both."""
    if not isinstance(entry, dict):
        raise BadEntry(f"is a {type(entry).__name__}, not an object")
    height, width = entry.get("height"), entry.get("width")
    if not is_side(height) or not is_side(width):
        raise BadEntry(f"height and width are {height!r} and {width!r}")
    return height, width


def as_flag(name: str, value: Any) -> bool:
    """Return a bool from true, false, 1 or 0."""
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise BadEntry(f"{name} is {value!r}: it must be true, false, 1 or 0")


def as_xywh(value: Any) -> tuple[float, float, float, float] | None:
    """Return COCO's `bbox`, or None if there is none."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        raise BadEntry(f"bbox is {value!r}, not [x, y, width, height]")
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))


# Segmentations --------------------------------------------------------------------------------------------------------


def clean_segmentation(value: Any, size: tuple[int, int]) -> Segmentation:
    """Return the polygons with at least 3 points, or a compressed RLE with `counts` as bytes.

    Polygons of fewer than 3 points or with half a point have no area and are dropped.

    Args:
        value: Polygons; an RLE, compressed or not (COCO's crowds); or a list of compressed RLEs (RefCLEF), whose union
            is returned.
        size: (height, width) of the image.

    Raises:
        BadEntry: The value is none of these, or unsafe for pycocotools.
    """
    if isinstance(value, dict):
        return clean_rle(value, size)
    if not isinstance(value, list) or not value:
        raise BadEntry(f"no polygons and no RLE, but {_short(value)}")
    if all(isinstance(part, dict) for part in value):
        rles = [clean_rle(part, size) for part in value]
        return rles[0] if len(rles) == 1 else coco_mask.merge(rles)
    polygons = []
    for part in value:
        try:
            numbers = np.asarray(part, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.zeros(())
        if numbers.ndim != 1:
            raise BadEntry(f"a polygon is a flat list x, y, x, y, ..., not {_short(part)}")
        if not (np.abs(numbers) <= MAX_BEYOND * max(size)).all():  # also false for NaN
            raise BadEntry("a polygon has coordinates that are not finite or far outside the image")
        if len(part) >= 6 and len(part) % 2 == 0:
            polygons.append(part)
    if not polygons:
        raise BadEntry("no polygon has 3 points")
    return polygons


def clean_rle(rle: dict, size: tuple[int, int]) -> dict:
    """Return a compressed RLE of this size with `counts` as bytes and no run of 0 except the first."""
    if not {"size", "counts"} <= set(rle):
        raise BadEntry(f"an RLE has size and counts, not {sorted(map(str, rle))}")
    if not isinstance(rle["size"], list | tuple) or tuple(rle["size"]) != tuple(size):
        raise BadEntry(f"an RLE of size {_short(rle['size'])} in an image of size {list(size)}")
    if size[0] * size[1] >= MAX_RLE_PIXELS:
        raise BadEntry(f"an RLE of size {list(size)}, which is larger than any image")
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, list):
        runs = np.asarray(counts)
        if runs.ndim != 1 or not np.issubdtype(runs.dtype, np.integer):
            raise BadEntry("the counts of an uncompressed RLE are whole numbers")
        runs = runs.astype(np.int64)
    elif isinstance(counts, bytes):
        runs = decode_runs(counts)
    else:
        raise BadEntry(f"the counts of an RLE are a string or a list, not {_short(counts)}")
    pixels = size[0] * size[1]
    largest = runs.view(np.uint64).max(initial=0)  # negative runs become huge
    if largest > pixels or int(runs.sum()) != pixels:  # in this order, because the sum could overflow
        raise BadEntry(f"the runs of an RLE do not add up to {size[0]} x {size[1]} pixels")
    if runs[1:].all():
        if isinstance(counts, bytes):
            return {"size": list(size), "counts": counts}
    else:  # join the neighbors of each run of 0, except a first one
        state = np.arange(len(runs)) % 2
        runs, state = runs[runs > 0], state[runs > 0]
        first = np.flatnonzero(np.concatenate([[True], state[1:] != state[:-1]]))
        runs = np.add.reduceat(runs, first)
        if state[0]:
            runs = np.concatenate([[0], runs])
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def decode_runs(counts: bytes) -> np.ndarray:
    """Return the run lengths in COCO's compressed string.

    A character holds 5 bits, lowest first. Bit 5 means "more follows", bit 4 of the last character means "negative".
    From the fourth run on, each is stored as the difference to the run two before it.
    """
    characters = np.frombuffer(counts, np.uint8) - np.uint8(48)  # characters below 48 become large
    if len(characters) == 0 or characters.max() > 63 or characters[-1] > 31:
        raise BadEntry("the counts of an RLE are not COCO's compressed form")
    last = (characters < 32).nonzero()[0]
    first = np.concatenate([[0], last[:-1] + 1])
    more = last - first
    if more.max() > 5:  # 6 characters hold 29 bits and a sign
        raise BadEntry("the counts of an RLE hold a number that is too large")
    place = np.arange(len(characters)) - first.repeat(more + 1)
    values = np.add.reduceat((characters & 31).astype(np.int64) << (5 * place), first)
    values -= (characters[last] & 16).astype(np.int64) << (5 * more + 1)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def sound_rles(counts: Sequence[bytes], pixels: Sequence[int]) -> np.ndarray:
    """Return (N,) bool: the RLEs that `clean_rle` would return as they are, checked in one pass over all of them.

    Args:
        counts: Counts of N RLEs in COCO's compressed form, N > 0.
        pixels: Number of pixels of their images.
    """
    sizes = np.array([len(one) for one in counts])
    limits = np.asarray(pixels, np.int64)
    # An empty string is not sound. One character stands for it, because reduceat needs one
    characters = np.frombuffer(b"".join(one or b"~" for one in counts), np.uint8) - np.uint8(48)
    rle_ends = np.cumsum(np.maximum(sizes, 1))
    sound = (sizes > 0) & (limits < MAX_RLE_PIXELS)
    if characters.max() > 63:
        sound &= ~np.logical_or.reduceat(characters > 63, np.concatenate([[0], rle_ends[:-1]]))
    # Numbers end at characters below 32 and, in damaged RLEs, where the RLE ends
    is_end = characters < 32
    is_end[rle_ends - 1] = True
    last = np.flatnonzero(is_end)
    first = np.concatenate([[0], last[:-1] + 1])
    more = last - first
    numbers_end = np.searchsorted(last, rle_ends - 1) + 1
    begin = np.concatenate([[0], numbers_end[:-1]])  # of each RLE, among the numbers
    bad = (more > 5) | (characters[last] > 31)
    if bad.any():
        sound &= ~np.logical_or.reduceat(bad, begin)
    # Each character has 5 bits, the lowest first. The highest bit of all is the sign
    bits = characters & 31
    values = bits[first].astype(np.int64)
    for place in range(1, 6):
        longer = np.flatnonzero(more >= place)
        values[longer] += bits[first[longer] + place].astype(np.int64) << (5 * place)
    values -= (bits[last] & 16).astype(np.int64) << (5 * np.minimum(more, 5) + 1)
    # From the fourth number on, each is the difference to the one two before: running sums of odd and even places. The
    # first number has a pair of its own, which takes back the sums of the RLE before.
    numbers = numbers_end - begin
    pairs_of = (numbers + 2) // 2
    pair = np.cumsum(pairs_of) - pairs_of
    place = np.arange(len(values)) + (2 * pair + 1 - begin).repeat(numbers)
    pairs = np.zeros((int(pairs_of.sum()), 2), np.int64)
    pairs.reshape(-1)[place] = values
    heads = pairs[pair, 1]
    pairs[pair] = 0
    pairs[pair[1:]] -= np.add.reduceat(pairs, pair)[:-1]
    np.cumsum(pairs, 0, out=pairs)
    values = pairs.reshape(-1)[place]
    # Runs fit the image, only the first one may be 0, and they add up to it
    values[begin] = 1
    sound &= (heads >= 0) & (heads <= limits)
    sound &= (np.minimum.reduceat(values, begin) > 0) & (np.maximum.reduceat(values, begin) <= limits)
    return sound & (np.add.reduceat(values, begin) + heads - 1 == limits)


def _short(value: Any) -> str:
    return repr(value)[:60]
