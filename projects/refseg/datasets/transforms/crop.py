"""Crops that never take all referents of an expression away, and scale jitter, which crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refseg.datasets.geometry import Size, box_of_mask, resizing, translation
from refseg.datasets.transforms.referents import all_keep_a_referent, areas, referent_masks
from refseg.datasets.transforms.resize import fit_inside, resize_image
from refseg.datasets.transforms.state import TransformState, check_fraction, check_range, check_size, check_tries
from refseg.errors import ConfigError
from refseg.records import Expression
from refseg.registry import TRANSFORMS


def choose_window(
    rng: np.random.Generator,
    *,
    size: Size,
    window: Size,
    masks: Mapping[int, np.ndarray],
    expressions: Sequence[Expression],
    min_visible: float,
    tries: int,
) -> tuple[int, int] | None:
    """(top, left) of a window of that size in an image of `size`, or None where none is found.

    Uniform places are tried; after `tries` misses the place is drawn among those that show all referents whole, which
    exist where the referents' common box fits.
    """
    before = areas(masks)
    free_rows, free_columns = size[0] - window[0], size[1] - window[1]
    for _ in range(tries):
        top, left = int(rng.integers(free_rows + 1)), int(rng.integers(free_columns + 1))
        cut = {index: mask[top : top + window[0], left : left + window[1]] for index, mask in masks.items()}
        if all_keep_a_referent(expressions, before, areas(cut), min_visible):
            return top, left
    boxes = np.array([box_of_mask(mask) for mask in masks.values() if mask.any()]).astype(int)
    (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    if y1 - y0 > window[0] or x1 - x0 > window[1]:
        return None
    top = int(rng.integers(max(0, y1 - window[0]), min(free_rows, y0) + 1))
    left = int(rng.integers(max(0, x1 - window[1]), min(free_columns, x0) + 1))
    return top, left


@TRANSFORMS.register_module()
class RandomCrop:
    """With `chance`, cuts out a window at a random place: of `size` (height, width, or a square's side; at most the
    image), or of a height and a width drawn as a `fraction` (low, high) of the image's.

    Each expression keeps a referent with at least `min_visible` of its area. Where no such window is found in `tries`,
    nor one that shows all referents whole, the sample stays as it is.
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
        place = choose_window(
            state.rng,
            size=state.size,
            window=window,
            masks=referent_masks(state, np.eye(3), state.size),
            expressions=state.expressions,
            min_visible=self.min_visible,
            tries=self.tries,
        )
        if place is not None:
            top, left = place
            state.move(state.image[top : top + window[0], left : left + window[1]], translation(-left, -top))
        return state


@TRANSFORMS.register_module()
class ScaleJitter:
    """Large-scale jitter: the image is fitted, its aspect ratio kept, into `size` (height, width, or a square's side)
    times a random factor of `scale`, and what then is larger than `size` is cropped at a random place. A smaller image
    stays smaller: collation pads it right and below, and a `Resize` after this one squashes it instead, as C3VG does.

    Each expression keeps a referent with at least `min_visible` of its area. Where no such window is found in `tries`,
    nor one that shows all referents whole, the whole image is fitted into `size`.
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
        place: tuple[int, int] | None = (0, 0)
        if window != scaled:
            place = choose_window(
                state.rng,
                size=scaled,
                window=window,
                masks=referent_masks(state, resizing(old, scaled), scaled),
                expressions=state.expressions,
                min_visible=self.min_visible,
                tries=self.tries,
            )
        if place is None:
            scaled = window = fit_inside(old, self.size)
            place = (0, 0)
        top, left = place
        image = resize_image(state.image, scaled, antialias=self.antialias)
        image = image[top : top + window[0], left : left + window[1]]
        state.move(image, translation(-left, -top) @ resizing(old, scaled))
        return state
