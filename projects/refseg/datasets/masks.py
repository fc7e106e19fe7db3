"""Convert segmentations to masks.

Evaluation's ground truth is pycocotools' rasterization at the original size (`to_rle`). A model's input gets its masks
drawn once, at its own size (`rasterize`).

`overlap` decides about pixels that several polygons of one instance cover. "union" makes them mask, as COCO and nearly
all of the field do. "exclude" makes them background, as the code of LAVT, CrossVLT and CGFormer does by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import Box, Size, move_box, move_points, warp_mask
from refseg.datasets.images import open_image
from refseg.errors import DataError
from refseg.records import AnnotatedInstance, Segmentation

Overlap = Literal["union", "exclude"]
MasksAt = Literal["input", "original"]


def to_rle(segmentation: Segmentation, size: Size, overlap: Overlap = "union") -> dict:
    """Return the compressed COCO RLE of polygons, an RLE of either kind, or the path of a mask image."""
    height, width = size
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != (height, width):
            raise DataError(f"an RLE of size {segmentation['size']} belongs to an image of size {[height, width]}")
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    if isinstance(segmentation, str):
        return encode(_read_mask_image(segmentation, size))
    # pycocotools would take a polygon of 4 numbers for a box.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return encode(np.zeros((height, width), np.uint8))
    rles = coco_mask.frPyObjects(polygons, height, width)
    return encode(_combine(rles, overlap)) if overlap == "exclude" else coco_mask.merge(rles)


def encode(mask: np.ndarray) -> dict:
    """Return the compressed COCO RLE of a (h, w) mask, bool or uint8 of 0 and 1."""
    return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


def rle_to_json(rle: dict) -> dict:
    """Return an RLE ready for JSON, with `counts` as a string."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode(rle: dict) -> np.ndarray:
    """Return the (h, w) bool mask of a compressed RLE."""
    return coco_mask.decode(rle).astype(bool)


def rasterize(
    segmentation: Segmentation,
    original_size: Size,
    matrix: np.ndarray,
    size: Size,
    *,
    overlap: Overlap = "union",
    masks_at: MasksAt = "input",
) -> np.ndarray:
    """Draw a segmentation in another image.

    Args:
        segmentation: Polygons, RLE or mask image of the original image.
        original_size: Size of the original image.
        matrix: (3, 3) map from the original image to the new one.
        size: Size of the new image.
        overlap: See the module.
        masks_at: "input" moves the corners of polygons and draws them at `size`, as ReLA does. "original" draws at the
            original size and moves the pixels, as LAVT does and as always happens to RLEs and mask images. The two
            differ in boundary pixels.

    Returns:
        (h, w) uint8 of 0 and 1.
    """
    if masks_at == "input" and not isinstance(segmentation, dict | str):
        return draw_polygons([move_points(matrix, corners) for corners in _corners(segmentation)], size, overlap)
    if isinstance(segmentation, str):
        mask = _read_mask_image(segmentation, original_size)
    else:
        mask = coco_mask.decode(to_rle(segmentation, original_size, overlap))
    return warp_mask(mask, matrix, size)


def draw_polygons(polygons: Sequence[np.ndarray], size: Size, overlap: Overlap = "union") -> np.ndarray:
    """Draw polygons, (N, 2) corners each, into a (h, w) uint8 mask with the pixels that pycocotools gives."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    if not polygons:
        return mask
    # Draw only the window that holds all polygons.
    points = np.concatenate(polygons) if len(polygons) > 1 else polygons[0]
    (left, top), (right, bottom) = np.floor(points.min(0)), np.ceil(points.max(0)) + 1
    left, top, right, bottom = int(max(left, 0)), int(max(top, 0)), int(min(right, width)), int(min(bottom, height))
    if left < right and top < bottom:
        window = [(polygon - (left, top)).ravel() for polygon in polygons]
        rles = coco_mask.frPyObjects(window, bottom - top, right - left)
        mask[top:bottom, left:right] = _combine(rles, overlap)
    return mask


def instance_mask(
    instance: AnnotatedInstance,
    original_size: Size,
    matrix: np.ndarray,
    size: Size,
    *,
    overlap: Overlap = "union",
    masks_at: MasksAt = "input",
    must_show: bool = False,
) -> np.ndarray:
    """Draw an instance as `rasterize` does, with at least one pixel if its center is in the image.

    Args:
        instance: The instance.
        original_size: See `rasterize`; so for `matrix`, `size`, `overlap` and `masks_at`.
        must_show: Draw the nearest pixel if the center lies outside. Only an annotation without area is empty then.
    """
    segmentation = instance.segmentation
    mask = rasterize(segmentation, original_size, matrix, size, overlap=overlap, masks_at=masks_at)
    box = None if np.count_nonzero(mask) else box_of_segmentation(segmentation, original_size)
    if box is None:
        return mask
    # The instance covers no pixel's center: draw the one pixel that its own center lies in.
    x0, y0, x1, y1 = move_box(matrix, box)
    column, row = int(np.floor((x0 + x1) / 2)), int(np.floor((y0 + y1) / 2))
    height, width = size
    if must_show:
        column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
    if 0 <= column < width and 0 <= row < height:
        mask[row, column] = 1
    return mask


def box_of_segmentation(segmentation: Segmentation, size: Size) -> Box | None:
    """Return x0, y0, x1, y1 around the corners or pixels, or None if there are none."""
    if not isinstance(segmentation, dict | str):
        polygons = _corners(segmentation)
        if not polygons:
            return None
        points = np.concatenate(polygons)
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        return x0, y0, x1, y1
    x, y, w, h = coco_mask.toBbox(to_rle(segmentation, size)).tolist()
    return (x, y, x + w, y + h) if w and h else None


def mask_of_image(image: Image.Image, path: str) -> np.ndarray:
    """Return the (h, w) bool mask of an image: pixels that are not 0, or not the first color of a palette.

    The numbers in the file decide. A conversion to gray would turn dark colors into 0.
    """
    # Pillow keeps only the high bytes of 16-bit colors.
    has_16_bit_colors = image.mode == "RGB" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
        return np.asarray(image) != 0
    if image.mode == "RGB" and not has_16_bit_colors:
        return (np.asarray(image) != 0).any(-1)
    raise DataError(
        f"mask image {path} has mode {image.mode}{' with 16 bits' * has_16_bit_colors}, which does not define a mask. "
        "Save it as a gray image without transparency, where 0 is background"
    )


def _corners(polygons: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Return the (N, 2) float64 corners of each polygon of at least 3 points."""
    corners = [np.asarray(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2) for polygon in polygons]
    return [points for points in corners if len(points) >= 3]


def _combine(rles: list[dict], overlap: Overlap) -> np.ndarray:
    """Return the (h, w) uint8 mask of the RLEs of one instance's polygons."""
    if overlap == "exclude" and len(rles) > 1:
        return (coco_mask.decode(rles).sum(-1) == 1).astype(np.uint8)
    return coco_mask.decode(rles[0] if len(rles) == 1 else coco_mask.merge(rles))


def _read_mask_image(path: str, size: Size) -> np.ndarray:
    """Return the (h, w) uint8 mask of a file, which must have the size of its image."""
    with open_image(path) as image:
        if (image.height, image.width) != tuple(size):
            raise DataError(f"mask image {path} has size {[image.height, image.width]}, its image has {list(size)}")
        return mask_of_image(image, path).astype(np.uint8)
