"""Horizontal flip, with the words that go with it."""

from __future__ import annotations

from dataclasses import replace

import cv2

from refseg.datasets.geometry import mirroring
from refseg.datasets.mirror import mirror_text
from refseg.datasets.transforms.state import TransformState, check_fraction
from refseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomFlip:
    """With `chance`, mirrors the image, and swaps left and right in its expressions (`refseg.datasets.mirror`).

    A sample with an expression that cannot be mirrored safely stays as it is, so fewer than `chance` are flipped.
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
