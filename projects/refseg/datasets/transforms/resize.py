"""Resizing, the only geometry that evaluation pipelines may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from refseg.datasets.geometry import Size, resizing
from refseg.datasets.transforms.state import TransformState, check_size
from refseg.errors import ConfigError
from refseg.registry import TRANSFORMS


def fit_inside(old: Size, limit: tuple[float, float]) -> Size:
    """The largest size of `old`'s aspect ratio inside `limit`, in whole pixels, at least one."""
    scale = min(limit[0] / old[0], limit[1] / old[1])
    return max(1, round(old[0] * scale)), max(1, round(old[1] * scale))


def resize_image(image: np.ndarray, size: Size, *, antialias: bool) -> np.ndarray:
    """Bilinear, by OpenCV, or with antialiasing by Pillow, whose pixels are those of the papers' code."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if antialias:
        from PIL import Image

        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


@TRANSFORMS.register_module()
class Resize:
    """To `size` (height, width), or a square of that side. `mode='squash'` (LAVT and most of the field) ignores the
    aspect ratio; `'keep'` fits inside, and collation pads right and below.

    `antialias=True` averages over source pixels when it shrinks, by Pillow, as LAVT's, ReLA's and most official code
    does; weights trained there expect it. For 640x480 -> 480x480 it takes about 2 ms, the fast way 0.5.
    """

    def __init__(
        self, *, size: int | Sequence[int], mode: Literal["squash", "keep"] = "squash", antialias: bool = False
    ) -> None:
        if mode not in ("squash", "keep"):
            raise ConfigError(f"Resize.mode must be 'squash' or 'keep', not {mode!r}")
        self.size = check_size(self, size)
        self.mode = mode
        self.antialias = antialias

    def __call__(self, state: TransformState) -> TransformState:
        old = state.size
        new = self.size if self.mode == "squash" else fit_inside(old, self.size)
        state.move(resize_image(state.image, new, antialias=self.antialias), resizing(old, new))
        return state
