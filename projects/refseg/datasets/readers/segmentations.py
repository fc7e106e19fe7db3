"""What annotation files call a segmentation -> polygons or one compressed RLE, checked.

Everything that C code will later see is checked here: pycocotools reads and writes beyond its arrays when the runs of
an RLE do not add up to the image or when there are more of them than pixels, takes a run of 0 within an RLE for its
end, and allocates by the length of a polygon's edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.records import Segmentation

MAX_RLE_PIXELS = 2**29  # of an RLE: pycocotools' compressed form garbles greater differences of runs
MAX_BEYOND = 10  # times the image's longer side; pycocotools walks along every edge, and nothing real is farther out


def clean_segmentation(value: Any, size: tuple[int, int]) -> Segmentation:
    """Polygons with at least 3 points each, or a compressed RLE with counts as bytes. ValueError says what is wrong.

    COCO's forms: polygons; an RLE, compressed or not (crowds); and RefCLEF's list of compressed RLEs, which is their
    union. Polygons of fewer than 3 points or with half a point have no area and are left out.
    """
    if isinstance(value, dict):
        return clean_rle(value, size)
    if not isinstance(value, list) or not value:
        raise ValueError(f"no polygons and no RLE, but {_short(value)}")
    if all(isinstance(part, dict) for part in value):
        rles = [clean_rle(part, size) for part in value]
        return rles[0] if len(rles) == 1 else coco_mask.merge(rles)
    polygons = [_polygon(part, MAX_BEYOND * max(size)) for part in value]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not polygons:
        raise ValueError("no polygon has 3 points")
    return polygons


def _polygon(value: Any, limit: float) -> list[float]:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1:
        raise ValueError(f"a polygon is a flat list x, y, x, y, ..., not {_short(value)}")
    if not (np.abs(numbers) <= limit).all():  # also false for NaN
        raise ValueError("a polygon has coordinates that are not finite or far outside of any image")
    return value


def clean_rle(rle: dict, size: tuple[int, int]) -> dict:
    """A compressed RLE of this size, `counts` as bytes, in the form that an encoder gives: only the first run may be
    0."""
    if not {"size", "counts"} <= set(rle):
        raise ValueError(f"an RLE has size and counts, not {sorted(map(str, rle))}")
    if not isinstance(rle["size"], list | tuple) or tuple(rle["size"]) != tuple(size):
        raise ValueError(f"an RLE of size {_short(rle['size'])} in an image of size {list(size)}")
    if size[0] * size[1] >= MAX_RLE_PIXELS:
        raise ValueError(f"an RLE of size {list(size)}, which is larger than any image")
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, list):
        runs = np.asarray(counts)
        if runs.ndim != 1 or not np.issubdtype(runs.dtype, np.integer):
            raise ValueError("the counts of an uncompressed RLE are whole numbers")
        runs = runs.astype(np.int64)
    elif isinstance(counts, bytes):
        runs = decode_runs(counts)
    else:
        raise ValueError(f"the counts of an RLE are a string or a list, not {_short(counts)}")
    _check_runs(runs, size)
    joined = join_runs(runs)
    if joined is runs and isinstance(counts, bytes):
        return {"size": list(size), "counts": counts}
    return coco_mask.frPyObjects({"size": list(size), "counts": joined.tolist()}, *size)


def _check_runs(runs: np.ndarray, size: tuple[int, int]) -> None:
    pixels = size[0] * size[1]
    largest = runs.view(np.uint64).max(initial=0)  # of what is below 0, a huge number
    if largest > pixels or int(runs.sum()) != pixels:  # in this order, for the sum could wrap around
        raise ValueError(f"the runs of an RLE do not add up to {size[0]} x {size[1]} pixels")


def join_runs(runs: np.ndarray) -> np.ndarray:
    """The same mask without runs of 0, but for a first one: the neighbours of such a run are one. Runs that have none
    are returned as they are."""
    if runs[1:].all():
        return runs
    state = np.arange(len(runs)) % 2
    runs, state = runs[runs > 0], state[runs > 0]
    first = np.flatnonzero(np.concatenate([[True], state[1:] != state[:-1]]))
    joined = np.add.reduceat(runs, first)
    return np.concatenate([[0], joined]) if state[0] else joined


def decode_runs(counts: bytes) -> np.ndarray:
    """Run lengths of COCO's compressed string: 5 bits a character, lowest first, bit 5 = "more follows", bit 4 of the
    last = negative; from the fourth on, each is the difference to the run before the last."""
    characters = np.frombuffer(counts, np.uint8) - np.uint8(48)  # what is below 48 becomes large
    if len(characters) == 0 or characters.max() > 63 or characters[-1] > 31:
        raise ValueError("the counts of an RLE are not COCO's compressed form")
    last = (characters < 32).nonzero()[0]
    first = np.concatenate([[0], last[:-1] + 1])
    more = last - first
    if more.max() > 5:  # 6 characters hold 29 bits and a sign
        raise ValueError("the counts of an RLE hold a number that is too large")
    place = np.arange(len(characters)) - first.repeat(more + 1)
    values = np.add.reduceat((characters & 31).astype(np.int64) << (5 * place), first)
    values -= (characters[last] & 16).astype(np.int64) << (5 * more + 1)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def _short(value: Any) -> str:
    return repr(value)[:60]
