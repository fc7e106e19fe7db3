from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from refseg.datasets.transforms import TransformState
from refseg.records import AnnotatedInstance, Expression, Record


def make_state(
    image: np.ndarray,
    segmentations: Sequence = (),
    expressions: Sequence[tuple[str, tuple[int, ...]]] = (),
    *,
    seed: int = 0,
    boxes: Sequence | None = None,
) -> TransformState:
    """A loaded image with instances and expressions (text, referents), and tokens in place of a tokenizer's."""
    boxes = boxes or [None] * len(segmentations)
    instances = [
        AnnotatedInstance(str(i), s, None, box) for i, (s, box) in enumerate(zip(segmentations, boxes, strict=True))
    ]
    made = [Expression(str(i), text, referents) for i, (text, referents) in enumerate(expressions)]
    record = Record("image", "image.png", image.shape[:2], instances, made)
    return TransformState(record, list(made), np.random.default_rng(seed), image=image)


@pytest.fixture
def state_of() -> Callable[..., TransformState]:
    return make_state
