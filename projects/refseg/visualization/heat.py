"""Heat maps: what a model says of each place of an image, on its own grid, brought to the image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class GridMap:
    """`values` (h, w) on a grid; the image covers its upper left `extent` (rows, columns), not always whole ones."""

    values: np.ndarray
    extent: tuple[float, float]

    def at(self, size: tuple[int, ...]) -> np.ndarray:
        """(H, W) float32: the values at the pixels of an image of that size, interpolated between cells' centres."""
        columns, rows = (
            ((np.arange(length, dtype=np.float32) + 0.5) * (extent / length) - 0.5)
            for length, extent in zip(size[::-1], self.extent[::-1], strict=True)
        )
        values = np.asarray(self.values, np.float32)
        x, y = np.broadcast_arrays(columns[None], rows[:, None])
        return cv2.remap(values, x.copy(), y.copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def cells_at(self, size: tuple[int, ...]) -> np.ndarray:
        """(H, W): of each pixel the value of the cell that it lies in."""
        rows, columns = (
            np.minimum(np.arange(length) / length * extent, cells - 1).astype(int)
            for length, extent, cells in zip(size, self.extent, self.values.shape, strict=True)
        )
        return self.values[rows[:, None], columns]
