from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refseg.datasets.transforms import PackSample, RandomFlip, TransformState

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_image_and_words_are_swapped(state_of: Callable[..., TransformState]) -> None:
    state = RandomFlip(chance=1)(state_of(IMAGE, [], [("left of the right door", ()), ("a cat", ())]))
    assert np.array_equal(state.image, IMAGE[:, ::-1])
    assert [e.text for e in state.expressions] == ["right of the left door", "a cat"]
    assert [e.text for e in state.record.expressions] == ["left of the right door", "a cat"], "records stay"
    assert state.expressions[1] is state.record.expressions[1]


def test_mirrored_masks_are_exact(state_of: Callable[..., TransformState]) -> None:
    """x 1..2 of width 3 stays in the middle column, x 0..2 becomes 1..3."""
    shapes = [[[1, 0, 2, 0, 2, 2, 1, 2]], [[0, 0, 2, 0, 2, 1, 0, 1]]]
    state = RandomFlip(chance=1)(state_of(IMAGE, shapes, [("a", (0, 1))], boxes=[(1, 0, 1, 2), (0, 0, 2, 1)]))
    state.token_ids, state.word_of = [[1]], [[0]]
    sample = PackSample()(state)
    assert sample.instance_masks.int().tolist() == [[[0, 1, 0], [0, 1, 0]], [[0, 1, 1], [0, 0, 0]]]
    assert sample.instance_boxes.tolist() == [[1, 0, 2, 2], [1, 0, 3, 1]]


def test_one_text_that_cannot_be_mirrored_keeps_the_sample(state_of: Callable[..., TransformState]) -> None:
    state = RandomFlip(chance=1)(state_of(IMAGE, [], [("left man", ()), ("right behind the desk", ())]))
    assert state.image is IMAGE and state.expressions[0].text == "left man"


def test_chance(state_of: Callable[..., TransformState]) -> None:
    flips = sum(RandomFlip()(state_of(IMAGE, [], [("a", ())], seed=seed)).image is not IMAGE for seed in range(200))
    assert 75 < flips < 125
