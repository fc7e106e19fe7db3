"""The outlines of a mask as COCO polygons, along the borders of its pixels."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

Polygon = list[float]  # x, y, x, y, ...: corners of pixels


def trace(mask: np.ndarray) -> list[Polygon]:
    """The closed outlines of a mask (H, W): one for each part whose pixels share sides, and one for each hole.

    In each row of pixel corners, horizontal sides join the first turning point to the second, the third to the fourth
    and so on; vertical sides do so in each column. Where two pixels touch at a corner only, that corner is two turning
    points, put in such an order that each belongs to one of the pixels.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    touching = (nw == se) & (ne == sw) & (nw != ne)  # (H + 1, W + 1)
    ys, xs = np.nonzero(((nw + ne + sw + se) % 2 == 1) | touching)
    twice = touching[ys, xs]
    ys, xs = np.repeat(ys, 1 + twice), np.repeat(xs, 1 + twice)
    # Nodes are now sorted by y, then x: the order along rows. The second of two equal ones comes first in its column
    # where the pixels are NE and SW.
    second = np.zeros(len(ys), dtype=bool)
    second[1:] = (ys[1:] == ys[:-1]) & (xs[1:] == xs[:-1])
    place = np.where(second != (ne[ys, xs] == 1) & touching[ys, xs], 1, 0)
    columns = np.lexsort((place, ys, xs))
    beside = np.arange(len(ys)) ^ 1  # the partner in the row
    below = np.empty_like(beside)  # the partner in the column
    below[columns[0::2]], below[columns[1::2]] = columns[1::2], columns[0::2]
    return _loops(xs.tolist(), ys.tolist(), beside.tolist(), below.tolist())


def _loops(xs: list[int], ys: list[int], beside: list[int], below: list[int]) -> list[Polygon]:
    """Follow the sides, in turn horizontal and vertical, from each node not yet passed."""
    passed = [False] * len(xs)
    loops = []
    for start in range(len(xs)):
        loop: Polygon = []
        node = start
        while not passed[node]:
            other = beside[node]
            passed[node] = passed[other] = True
            loop += [xs[node], ys[node], xs[other], ys[other]]
            node = below[other]
        if loop:
            loops.append(loop)
    return loops


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """(N, H, W) bool -> compressed COCO run lengths, counts as str."""
    encoded = mask_tools.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def segmentation(mask: np.ndarray, rle: dict[str, Any]) -> list[Polygon] | dict[str, Any]:
    """Polygons where pycocotools makes exactly the mask of them; its run lengths where there are holes."""
    height, width = mask.shape
    polygons = trace(mask)
    if not polygons:
        return rle
    drawn = mask_tools.merge(mask_tools.frPyObjects(polygons, height, width))
    return polygons if drawn["counts"].decode("ascii") == rle["counts"] else rle
