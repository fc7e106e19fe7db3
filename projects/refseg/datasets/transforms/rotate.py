"""Rotation by a few degrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refseg.datasets.geometry import rotation, warp_image
from refseg.datasets.transforms.referents import all_keep_a_referent, areas, referent_masks
from refseg.datasets.transforms.state import TransformState, check_colour, check_fraction, check_tries, check_turn
from refseg.registry import TRANSFORMS

MEAN_COLOUR = (124, 116, 104)  # ImageNet's: zero after normalisation, as padding is


@TRANSFORMS.register_module()
class RandomRotate:
    """With `chance`, turns the image about its middle by `degrees` drawn from (low, high), clockwise; 15 is
    (-15, 15), VATEX's.

    The image keeps its size; the corners that come in are `fill`. Each expression keeps a referent with at least
    `min_visible` of its area; where no such angle is found in `tries`, the sample stays as it is.
    """

    def __init__(
        self,
        *,
        degrees: float | Sequence[float],
        chance: float = 1.0,
        min_visible: float = 0.5,
        tries: int = 10,
        fill: Sequence[int] = MEAN_COLOUR,
    ) -> None:
        self.degrees = check_turn(self, "degrees", degrees)
        self.chance = check_fraction(self, "chance", chance)
        self.min_visible = check_fraction(self, "min_visible", min_visible)
        self.tries = check_tries(self, tries)
        self.fill = check_colour(self, "fill", fill)

    def __call__(self, state: TransformState) -> TransformState:
        state.mark_augmented(self)
        if state.rng.random() >= self.chance:
            return state
        before = areas(referent_masks(state, np.eye(3), state.size))
        state.frames.append((state.matrix, state.size))
        for _ in range(self.tries):
            turn = rotation(state.rng.uniform(*self.degrees), state.size)
            after = areas(referent_masks(state, turn, state.size))
            if all_keep_a_referent(state.expressions, before, after, self.min_visible):
                state.move(warp_image(state.image, turn, state.size, self.fill), turn)
                return state
        state.frames.pop()
        return state
