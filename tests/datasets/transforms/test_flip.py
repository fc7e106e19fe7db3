from __future__ import annotations

import numpy as np

from refseg.datasets.transforms import RandomFlip
from transform_states import make_state, packed

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_image_and_words_are_swapped() -> None:
    state = RandomFlip(chance=1)(make_state(IMAGE, [], [("left of the right door", ()), ("a cat", ())]))
    assert np.array_equal(state.image, IMAGE[:, ::-1])
    assert [e.text for e in state.expressions] == ["right of the left door", "a cat"]
    assert [e.text for e in state.record.expressions] == ["left of the right door", "a cat"], "the record is unchanged"
    assert state.expressions[1] is state.record.expressions[1]


def test_masks_and_boxes_are_mirrored_exactly() -> None:
    """In a width of 3, x 1..2 stays in the middle column and x 0..2 becomes 1..3."""
    shapes = [[[1, 0, 2, 0, 2, 2, 1, 2]], [[0, 0, 2, 0, 2, 1, 0, 1]]]
    state = RandomFlip(chance=1)(make_state(IMAGE, shapes, [("a", (0, 1))], boxes=[(1, 0, 1, 2), (0, 0, 2, 1)]))
    sample = packed(state)
    assert sample.instance_masks.int().tolist() == [[[0, 1, 0], [0, 1, 0]], [[0, 1, 1], [0, 0, 0]]]
    assert sample.instance_boxes.tolist() == [[1, 0, 2, 2], [1, 0, 3, 1]]


def test_sample_is_not_flipped_if_one_text_cannot_be_mirrored() -> None:
    state = RandomFlip(chance=1)(make_state(IMAGE, [], [("left man", ()), ("right behind the desk", ())]))
    assert state.image is IMAGE and state.expressions[0].text == "left man"


def test_flip_probability() -> None:
    flips = sum(RandomFlip()(make_state(IMAGE, [], [("a", ())], seed=seed)).image is not IMAGE for seed in range(200))
    assert 75 < flips < 125
