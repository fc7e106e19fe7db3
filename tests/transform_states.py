"""States for tests of transforms, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refseg.datasets.tokenizers import Tokenized
from refseg.datasets.transforms import PackSample, TransformState
from refseg.records import AnnotatedInstance, Expression, Record
from refseg.structures import Sample


def make_state(
    image: np.ndarray,
    segmentations: Sequence = (),
    expressions: Sequence[tuple[str, tuple[int, ...]]] = (),
    *,
    seed: int = 0,
    boxes: Sequence | None = None,
) -> TransformState:
    """Return the state of a loaded image with instances and expressions (text, referents)."""
    boxes = boxes or [None] * len(segmentations)
    instances = [
        AnnotatedInstance(str(i), s, None, box) for i, (s, box) in enumerate(zip(segmentations, boxes, strict=True))
    ]
    made = [Expression(str(i), text, referents) for i, (text, referents) in enumerate(expressions)]
    record = Record("image", "image.png", image.shape[:2], instances, made)
    return TransformState(record, list(made), np.random.default_rng(seed), image=image)


def packed(state: TransformState, **options: object) -> Sample:
    """Pack a state with one token for each expression."""
    count = len(state.expressions)
    state.tokens = Tokenized([[1]] * count, [[0]] * count, [()] * count)
    return PackSample(**options)(state)


def square(x: float, y: float, side: float) -> list[list[float]]:
    """Return the polygon of a square with its upper left corner at (x, y)."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]
