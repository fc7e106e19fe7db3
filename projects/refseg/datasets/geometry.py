"""Geometry of samples. A 3 x 3 matrix maps points in the original image to points in the current one: it scales,
moves, and mirrors them.

Coordinates are continuous: x to the right, y down, pixel i covers [i, i + 1]. Sizes are (height, width). Matrices are
float64 and act on columns (x, y, 1), so the later step is on the left of a product.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

Size = tuple[int, int]
Box = tuple[float, float, float, float]


def translation(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves points by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def mirroring(width: float) -> np.ndarray:
    """Return the matrix of a horizontal flip: x -> width - x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def resizing(old: Size, new: Size) -> np.ndarray:
    """Return the matrix that scales an image of size `old` to size `new`."""
    return np.diag([new[1] / old[1], new[0] / old[0], 1.0])


def is_resizing(matrix: np.ndarray, old: Size, new: Size) -> bool:
    """Return whether the matrix does nothing but resize the whole image."""
    return np.allclose(matrix, resizing(old, new), atol=1e-6)


def move_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move (N, 2) points."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def move_box(matrix: np.ndarray, box: Box) -> Box:
    """Return the upright box around the moved corners of a box x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    corners = move_points(matrix, np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]], np.float64))
    low, high = corners.min(0), corners.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def clip_box(box: Box, size: Size) -> Box:
    """Clip a box x0, y0, x1, y1 to an image."""
    height, width = size
    x0, y0, x1, y1 = box
    return min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)


def box_of_mask(mask: np.ndarray) -> Box:
    """Return x0, y0, x1, y1 around the pixels of a mask, zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def warp_mask(mask: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """Warp a (H, W) uint8 mask: a new pixel gets the value of the pixel that its center lies in, 0 outside.

    A mere resize uses Pillow, which breaks ties on the edge of two pixels as the papers' code does.
    """
    if is_resizing(matrix, mask.shape, size):
        return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    rows, rows_inside = _sources(size[0], matrix[1, 1], matrix[1, 2], mask.shape[0])
    columns, columns_inside = _sources(size[1], matrix[0, 0], matrix[0, 2], mask.shape[1])
    warped = mask.take(rows, 0).take(columns, 1)
    if not rows_inside.all():
        warped[~rows_inside] = 0
    if not columns_inside.all():
        warped[:, ~columns_inside] = 0
    return warped


def _sources(length: int, scale: float, offset: float, old_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each new pixel of one axis the old pixel that its center lies in, and whether there is one."""
    source = np.floor((np.arange(length) + 0.5 - offset) / scale).astype(np.intp)
    return source.clip(0, old_length - 1), (source >= 0) & (source < old_length)
