"""Augmentation never turns an expression with referents into one without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.datasets.geometry import translation
from refseg.datasets.masks import instance_mask
from refseg.datasets.transforms import (
    RandomCrop,
    RandomFlip,
    Resize,
    ScaleJitter,
    TransformState,
)
from refseg.datasets.transforms.geometric import all_keep_a_referent, choose_window
from refseg.errors import ConfigError
from refseg.records import AnnotatedInstance, Expression, Record
from transform_states import make_state, packed, square

HEIGHT, WIDTH = 40, 60


squares = st.builds(
    square, st.integers(0, WIDTH * 8).map(lambda v: v / 8), st.integers(0, HEIGHT * 8).map(lambda v: v / 8),
    st.sampled_from([0.2, 1.0, 3.5, 12.0]),
)  # fmt: skip
augmentations = st.lists(
    st.sampled_from(
        [
            RandomCrop(fraction=(0.05, 0.6)),
            RandomCrop(size=(9, 9), min_visible=0.0),
            ScaleJitter(size=(20, 20), scale=(0.1, 3.0)),
            RandomFlip(),
            Resize(size=(7, 7)),
        ]
    ),
    max_size=4,
)


@given(st.lists(squares, min_size=1, max_size=5), augmentations, st.integers(0, 2**32), st.data())
@settings(deadline=None, max_examples=150)
def test_every_expression_keeps_a_visible_referent(shapes: list, chain: list, seed: int, data: st.DataObject) -> None:
    indices = st.sets(st.integers(0, len(shapes) - 1)).map(lambda chosen: tuple(sorted(chosen)))
    referents = data.draw(st.lists(indices, min_size=1, max_size=4))
    expressions = [Expression(str(i), "x", indices) for i, indices in enumerate(referents)]
    record = Record(
        "i", "i.png", (HEIGHT, WIDTH), [AnnotatedInstance(str(i), s) for i, s in enumerate(shapes)], expressions
    )
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    state = TransformState(record, list(expressions), np.random.default_rng(seed), image=image)
    for transform in chain:
        state = transform(state)
    sample = packed(state)
    seen = sample.instance_masks.flatten(1).any(1)
    assert seen.all(), "instances out of view are dropped"
    assert sample.referents.any(1).tolist() == [bool(indices) for indices in referents]


def test_min_visible() -> None:
    """5 of 10 pixels are half. One visible referent is enough. An expression without referents needs none."""
    expressions = [Expression("a", "", (0,)), Expression("b", "", (0, 1)), Expression("c", "", ())]
    assert all_keep_a_referent(expressions, {0: 10, 1: 10}, {0: 5, 1: 0}, 0.5)
    assert not all_keep_a_referent(expressions, {0: 10, 1: 10}, {0: 4, 1: 10}, 0.5)
    assert all_keep_a_referent(expressions[1:], {0: 10, 1: 10}, {0: 4, 1: 10}, 0.5)
    assert not all_keep_a_referent(expressions[:1], {0: 10}, {0: 0}, 0.0), "not even at min_visible 0"
    assert all_keep_a_referent(expressions[:1], {0: 0}, {0: 0}, 0.5), "annotations without area are ignored"


def test_window_is_found_if_random_positions_fail() -> None:
    """The only pixel is at row 70, column 3 of 100 x 100. About 1 in 460 windows of 5 x 5 shows it."""
    mask = np.zeros((100, 100), np.uint8)
    mask[70, 3] = 1
    for seed in range(20):
        state = TransformState(None, [Expression("a", "", (0,))], np.random.default_rng(seed))
        top, left = choose_window(state, (100, 100), (5, 5), {0: mask}, min_visible=0.5, tries=2)
        assert top <= 70 < top + 5 and left <= 3 < left + 5


def test_sample_is_not_cropped_if_referents_are_too_far_apart() -> None:
    """No 10 x 10 window shows the squares of both expressions."""
    image = np.zeros((40, 60, 3), np.uint8)
    shapes, expressions = [square(0, 0, 5), square(50, 30, 5)], [("a", (0,)), ("b", (1,))]
    state = RandomCrop(size=(10, 10))(make_state(image, shapes, expressions))
    assert state.size == (40, 60)
    state = ScaleJitter(size=(30, 30), scale=(3, 3))(make_state(image, shapes, expressions))
    assert state.size == (20, 30), "the whole image is fitted into 30 x 30"
    one_of_two = RandomCrop(size=(10, 10))(make_state(image, shapes, [("either", (0, 1))]))
    assert one_of_two.size in ((10, 10), (40, 60))


def test_cropped_out_instances_are_dropped() -> None:
    """After a crop to the left half, "both" keeps the left square and the sample has no other instance."""
    state = make_state(
        np.zeros((10, 20, 3), np.uint8), [square(1, 1, 4), square(14, 2, 4)], [("both", (0, 1)), ("", ())]
    )
    state.move(state.image[:, :10], translation(0, 0))
    sample = packed(state)
    assert sample.instance_masks.sum((1, 2)).tolist() == [16]
    assert sample.referents.tolist() == [[True], [False]]


def test_last_referent_keeps_one_pixel() -> None:
    """The left half does not show the square at x 14..18, y 2..6. The pixel nearest to it is (row 4, column 9)."""
    state = make_state(np.zeros((10, 20, 3), np.uint8), [square(14, 2, 4)], [("it", (0,))])
    state.move(state.image[:, :10], translation(0, 0))
    mask = packed(state).instance_masks[0]
    assert mask.nonzero().tolist() == [[4, 9]]


def test_tiny_instances_get_one_pixel() -> None:
    """A square of 0.2 pixels covers no pixel center. Annotations without area or out of view stay empty."""
    speck, nothing = AnnotatedInstance("a", square(3, 5, 0.2)), AnnotatedInstance("b", [])
    assert instance_mask(speck, (8, 8), np.eye(3), (8, 8)).nonzero() == (np.array([5]), np.array([3]))
    assert not instance_mask(nothing, (8, 8), np.eye(3), (8, 8), must_show=True).any()
    assert not instance_mask(speck, (8, 8), np.eye(3), (5, 8)).any()
    assert instance_mask(speck, (8, 8), np.eye(3), (5, 8), must_show=True).nonzero() == (np.array([4]), np.array([3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(), "either size or fraction"),
        (lambda: RandomCrop(size=(4, 4), fraction=(0.5, 1)), "either size or fraction"),
        (lambda: RandomCrop(fraction=(0.0, 1)), "fraction must be"),
        (lambda: RandomCrop(size=(4, 4), chance=2), r"RandomCrop\.chance must lie between 0 and 1"),
        (lambda: RandomCrop(size=(4, 4), tries=0), r"RandomCrop\.tries must be at least 1"),
        (lambda: ScaleJitter(size=(4, 4), scale=(2, 1)), "scale must be"),
        (lambda: ScaleJitter(size=(0, 4)), "size must be"),
        (lambda: RandomFlip(chance=-1), "chance must lie"),
        (lambda: RandomFlip(chance="0.5"), r"RandomFlip\.chance must lie between 0 and 1, not '0\.5'"),
        (lambda: RandomCrop(fraction=0.5), r"RandomCrop\.fraction must be \(low, high\) with 0 < low <= high <= 1"),
        (lambda: RandomCrop(size=4, tries=2.5), r"RandomCrop\.tries must be at least 1"),
        (lambda: ScaleJitter(size=4, scale=2), r"ScaleJitter\.scale must be \(low, high\) with 0 < low <= high, not 2"),
    ],
)
def test_invalid_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
