"""Segmentations -> masks. Evaluation's ground truth is pycocotools' rasterisation at the original size (`to_rle`);
a model's input gets its masks drawn once, at its own size (`rasterise`).

`overlap` says what pixels are that several polygons of one instance cover: "union" makes them mask, as COCO does and
nearly all of the field; "exclude" makes them background, as the code of LAVT, CrossVLT and CGFormer does, by accident.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import Box, Size, move_points, warp_mask
from refseg.datasets.images import FORMATS, decoding, read_bytes
from refseg.errors import DataError
from refseg.records import Segmentation

Overlap = Literal["union", "exclude"]
MasksAt = Literal["input", "original"]


def to_rle(segmentation: Segmentation, size: Size, overlap: Overlap = "union") -> dict:
    """Compressed COCO RLE of polygons, an RLE of either kind, or a mask PNG."""
    height, width = size
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != (height, width):
            raise DataError(f"an RLE of size {segmentation['size']} belongs to an image of size {[height, width]}")
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    if isinstance(segmentation, str):
        return coco_mask.encode(np.asfortranarray(_read_png(segmentation, size)))
    polygons = [polygon for polygon in segmentation if _has_area(polygon)]
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    rles = coco_mask.frPyObjects(polygons, height, width)
    if overlap == "exclude" and len(rles) > 1:
        return coco_mask.encode(np.asfortranarray(_combine(rles, overlap)))
    return coco_mask.merge(rles)


def encode(mask: np.ndarray) -> dict:
    """(h, w) bool -> compressed COCO RLE."""
    return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


def rle_to_json(rle: dict) -> dict:
    """Return an RLE ready for JSON, with `counts` as a string."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode(rle: dict) -> np.ndarray:
    """(h, w) bool."""
    return coco_mask.decode(rle).astype(bool)


def rasterise(
    segmentation: Segmentation,
    original_size: Size,
    matrix: np.ndarray,
    size: Size,
    *,
    overlap: Overlap = "union",
    masks_at: MasksAt = "input",
) -> np.ndarray:
    """(h, w) uint8 0/1 of `size`, seen through `matrix` (original -> input).

    With `masks_at="input"` the polygons' corners are moved and drawn at the input's size, as ReLA does. With
    "original" the mask is drawn at the original size and its pixels are moved, as LAVT does; masks that are no polygons
    always go this way. The two differ in boundary pixels.
    """
    if masks_at == "input" and not isinstance(segmentation, dict | str):
        corners = [np.asarray(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2) for polygon in segmentation]
        return draw_polygons([move_points(matrix, points) for points in corners if len(points) >= 3], size, overlap)
    if isinstance(segmentation, str):
        mask = _read_png(segmentation, original_size)
    else:
        mask = coco_mask.decode(to_rle(segmentation, original_size, overlap))
    return warp_mask(mask, matrix, size)


def draw_polygons(polygons: Sequence[np.ndarray], size: Size, overlap: Overlap = "union") -> np.ndarray:
    """Corners (N, 2) each -> (h, w) uint8: pycocotools' pixels, but it only sees the window that holds them all."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    if not polygons:
        return mask
    points = np.concatenate(polygons) if len(polygons) > 1 else polygons[0]
    (left, top), (right, bottom) = np.floor(points.min(0)), np.ceil(points.max(0)) + 1
    left, top, right, bottom = int(max(left, 0)), int(max(top, 0)), int(min(right, width)), int(min(bottom, height))
    if left < right and top < bottom:
        window = [(polygon - (left, top)).ravel() for polygon in polygons]
        rles = coco_mask.frPyObjects(window, bottom - top, right - left)
        mask[top:bottom, left:right] = _combine(rles, overlap)
    return mask


def box_of_segmentation(segmentation: Segmentation, size: Size) -> Box | None:
    """x0, y0, x1, y1 around the corners or pixels; None where there is nothing."""
    if not isinstance(segmentation, dict | str):
        polygons = [np.asarray(polygon[: len(polygon) // 2 * 2]).reshape(-1, 2) for polygon in segmentation]
        polygons = [polygon for polygon in polygons if len(polygon) >= 3]
        if not polygons:
            return None
        points = np.concatenate(polygons)
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        return x0, y0, x1, y1
    x, y, w, h = coco_mask.toBbox(to_rle(segmentation, size)).tolist()
    return (x, y, x + w, y + h) if w and h else None


def _combine(rles: list[dict], overlap: Overlap) -> np.ndarray:
    """(h, w) uint8 of the RLEs of one instance's polygons."""
    if overlap == "exclude" and len(rles) > 1:
        return (coco_mask.decode(rles).sum(-1) == 1).astype(np.uint8)
    return coco_mask.decode(rles[0] if len(rles) == 1 else coco_mask.merge(rles))


def _has_area(polygon: Sequence[float]) -> bool:
    """Fewer than 3 points have no area, and pycocotools would take 4 numbers for a box."""
    return len(polygon) >= 6


def _read_png(path: str, size: Size) -> np.ndarray:
    """(h, w) uint8 0/1 of a mask image: what is not 0, or not the first colour of a palette, is mask."""
    encoded = read_bytes(path)
    with decoding(path), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if (image.height, image.width) != tuple(size):
            raise DataError(f"mask image {path} has size {[image.height, image.width]}, its image has {list(size)}")
        return mask_of_image(image, path).astype(np.uint8)


def mask_of_image(image: Image.Image, path: str) -> np.ndarray:
    """(h, w) bool from the numbers in the file. A conversion to grey would turn dark colors into 0."""
    sixteen_bits_of_colour = image.mode == "RGB" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
        return np.asarray(image) != 0
    if image.mode == "RGB" and not sixteen_bits_of_colour:  # of which Pillow has the high bytes only
        return (np.asarray(image) != 0).any(-1)
    raise DataError(
        f"mask image {path} is of mode {image.mode}{' with 16 bits' * sixteen_bits_of_colour}, which does not say "
        "what is mask: save it as a grey image without transparency, where 0 is background"
    )
