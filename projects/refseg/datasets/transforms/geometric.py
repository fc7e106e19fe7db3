"""Transforms that move the image: resizing, flip, crop and scale jitter.

Augmentation never hides all referents of an expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from refseg.datasets.geometry import Size, box_of_mask, mirroring, resizing, translation
from refseg.datasets.mirror import mirror_text
from refseg.datasets.transforms.state import (
    TransformState,
    check_fraction,
    check_range,
    check_size,
    check_tries,
)
from refseg.errors import ConfigError, check_choice
from refseg.records import Expression
from refseg.registry import TRANSFORMS


def fit_inside(old: Size, limit: tuple[float, float]) -> Size:
    """Return the largest size inside `limit` with the aspect ratio of `old`, in whole pixels, at least 1 x 1."""
    scale = min(limit[0] / old[0], limit[1] / old[1])
    return max(1, round(old[0] * scale)), max(1, round(old[1] * scale))


def resize_image(image: np.ndarray, size: Size, *, antialias: bool) -> np.ndarray:
    """Resize bilinearly. OpenCV does it fast; with `antialias`, Pillow gives the pixels of most official code."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if antialias:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


@TRANSFORMS.register_module()
class Resize:
    """Resize the image. This is the only change of geometry that evaluation pipelines may contain.

    Args:
        size: (height, width), or the side of a square.
        mode: 'squash' (LAVT and most of the field) ignores the aspect ratio. 'keep' fits the image inside `size`;
            collation then pads right and below.
        antialias: Average over source pixels when shrinking, as the code of LAVT, ReLA and most papers does. Weights
            trained that way need it. 640 x 480 to 480 x 480 takes about 2 ms instead of 0.5 ms.
    """

    def __init__(
        self, *, size: int | Sequence[int], mode: Literal["squash", "keep"] = "squash", antialias: bool = False
    ) -> None:
        check_choice("Resize.mode", mode, ("squash", "keep"))
        self.size = check_size(self, size)
        self.mode = mode
        self.antialias = antialias

    def __call__(self, state: TransformState) -> TransformState:
        old = state.size
        new = self.size if self.mode == "squash" else fit_inside(old, self.size)
        state.move(resize_image(state.image, new, antialias=self.antialias), resizing(old, new))
        return state


@TRANSFORMS.register_module()
class RandomFlip:
    """Mirror the image horizontally and swap left and right in its expressions (`refseg.datasets.mirror`).

    A sample with an expression that cannot be mirrored safely stays as it is.

    Args:
        chance: Probability of a flip, before such samples are skipped.
    """

    def __init__(self, *, chance: float = 0.5) -> None:
        self.chance = check_fraction(self, "chance", chance)

    def __call__(self, state: TransformState) -> TransformState:
        state.mark_augmented(self)
        if state.rng.random() >= self.chance:
            return state
        texts = [mirror_text(expression.text) for expression in state.expressions]
        if any(text is None for text in texts):
            return state
        pairs = zip(state.expressions, texts, strict=True)
        state.rewrite([e if e.text == text else replace(e, text=text) for e, text in pairs], self)
        state.move(cv2.flip(state.image, 1), mirroring(state.size[1]))
        return state


@TRANSFORMS.register_module()
class RandomCrop:
    """Cut out a window at a random place. Give either `size` or `fraction`.

    Args:
        size: (height, width) of the window or the side of a square, at most the image.
        fraction: Range (low, high) of the window's height and width as fractions of the image's.
        chance: Probability of a crop.
        min_visible: Fraction of its area that at least one referent of each expression keeps.
        tries: Number of places to try before a window that shows all referents whole is drawn. If there is none, the
            sample stays as it is.
    """

    def __init__(
        self,
        *,
        size: int | Sequence[int] | None = None,
        fraction: Sequence[float] | None = None,
        chance: float = 1.0,
        min_visible: float = 0.5,
        tries: int = 10,
    ) -> None:
        if (size is None) == (fraction is None):
            raise ConfigError("RandomCrop needs either size or fraction (and not both)")
        self.window = None if size is None else check_size(self, size)
        self.fraction = None if fraction is None else check_range(self, "fraction", fraction, above=0, at_most=1)
        self.chance = check_fraction(self, "chance", chance)
        self.min_visible = check_fraction(self, "min_visible", min_visible)
        self.tries = check_tries(self, tries)

    def __call__(self, state: TransformState) -> TransformState:
        state.mark_augmented(self)
        if state.rng.random() >= self.chance:
            return state
        height, width = state.size
        if self.window is None:
            fractions = state.rng.uniform(*self.fraction, 2)
            window = max(1, round(height * fractions[0])), max(1, round(width * fractions[1]))
        else:
            window = min(height, self.window[0]), min(width, self.window[1])
        masks = state.referent_masks(np.eye(3), state.size)
        corner = choose_window(state, state.size, window, masks, min_visible=self.min_visible, tries=self.tries)
        if corner is not None:
            top, left = corner
            state.move(state.image[top : top + window[0], left : left + window[1]], translation(-left, -top))
        return state


@TRANSFORMS.register_module()
class ScaleJitter:
    """Large-scale jitter: fit the image into `size` times a random factor, then crop what exceeds `size`.

    The aspect ratio stays. A smaller image stays smaller: collation pads it right and below, and a `Resize` after this
    transform squashes it instead, as C3VG does.

    Args:
        size: (height, width), or the side of a square.
        scale: Range (low, high) of the factor.
        min_visible: Fraction of its area that at least one referent of each expression keeps.
        tries: Number of places to try before a window that shows all referents whole is drawn. If there is none, the
            whole image is fitted into `size`.
        antialias: See `Resize`.
    """

    def __init__(
        self,
        *,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.3, 1.4),
        min_visible: float = 0.5,
        tries: int = 10,
        antialias: bool = False,
    ) -> None:
        self.size = check_size(self, size)
        self.scale = check_range(self, "scale", scale, above=0)
        self.min_visible = check_fraction(self, "min_visible", min_visible)
        self.tries = check_tries(self, tries)
        self.antialias = antialias

    def __call__(self, state: TransformState) -> TransformState:
        state.mark_augmented(self)
        old, factor = state.size, state.rng.uniform(*self.scale)
        scaled = fit_inside(old, (self.size[0] * factor, self.size[1] * factor))
        window = min(scaled[0], self.size[0]), min(scaled[1], self.size[1])
        corner: tuple[int, int] | None = (0, 0)
        if window != scaled:
            masks = state.referent_masks(resizing(old, scaled), scaled)
            corner = choose_window(state, scaled, window, masks, min_visible=self.min_visible, tries=self.tries)
        if corner is None:
            scaled = window = fit_inside(old, self.size)
            corner = (0, 0)
        top, left = corner
        image = resize_image(state.image, scaled, antialias=self.antialias)
        image = image[top : top + window[0], left : left + window[1]]
        state.move(image, translation(-left, -top) @ resizing(old, scaled))
        return state


def choose_window(
    state: TransformState, size: Size, window: Size, masks: Mapping[int, np.ndarray], *, min_visible: float, tries: int
) -> tuple[int, int] | None:
    """Return (top, left) of a window in an image of `size`, or None if no window keeps the referents visible.

    Args:
        state: Source of the random numbers and the expressions.
        size: Size of the image to cut from.
        window: Size of the window.
        masks: Masks of the referents at `size`, by index in the record.
        min_visible: Fraction of its area that at least one referent of each expression keeps.
        tries: Number of random places to try.
    """
    before = _areas(masks)
    free_rows, free_columns = size[0] - window[0], size[1] - window[1]
    for _ in range(tries):
        top, left = int(state.rng.integers(free_rows + 1)), int(state.rng.integers(free_columns + 1))
        cut = {index: mask[top : top + window[0], left : left + window[1]] for index, mask in masks.items()}
        if all_keep_a_referent(state.expressions, before, _areas(cut), min_visible):
            return top, left
    # Draw among the windows that show all referents whole, if their common box fits.
    boxes = np.array([box_of_mask(mask) for mask in masks.values() if mask.any()]).astype(int)
    (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    if y1 - y0 > window[0] or x1 - x0 > window[1]:
        return None
    top = int(state.rng.integers(max(0, y1 - window[0]), min(free_rows, y0) + 1))
    left = int(state.rng.integers(max(0, x1 - window[1]), min(free_columns, x0) + 1))
    return top, left


def all_keep_a_referent(
    expressions: Iterable[Expression], before: Mapping[int, int], after: Mapping[int, int], min_visible: float
) -> bool:
    """Return whether each expression keeps a referent with at least `min_visible` of its area, at least one pixel.

    Referents without any area before are ignored.
    """
    for expression in expressions:
        visible = [index for index in expression.referents if before[index]]
        if visible and not any(after[index] >= max(1, min_visible * before[index]) for index in visible):
            return False
    return True


def _areas(masks: Mapping[int, np.ndarray]) -> dict[int, int]:
    return {index: int(np.count_nonzero(mask)) for index, mask in masks.items()}
