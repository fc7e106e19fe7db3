"""Segmentations -> masks, with pycocotools' rasterisation, which evaluation ground truth must be. Union of polygons."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.records import Segmentation


def to_rle(segmentation: Segmentation, size: tuple[int, int]) -> dict:
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
    # Fewer than 3 points have no area, and pycocotools would take 4 numbers for a box.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def decode(rle: dict) -> np.ndarray:
    """(h, w) bool."""
    return coco_mask.decode(rle).astype(bool)


def _read_png(path: str, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 0
    except OSError as error:
        raise DataError(f"mask image cannot be read: {path} ({error})") from None
    if mask.shape != tuple(size):
        raise DataError(f"mask image {path} has size {list(mask.shape)}, its image has {list(size)}")
    return mask.astype(np.uint8)
