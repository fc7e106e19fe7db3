"""Pictures of instances: their outlines, their numbers, and the answer that counts."""

import itertools

import numpy as np
import pytest

from refseg.visualization import overlay
from refseg.visualization.instances import (
    INSTANCE_COLORS,
    chip_places,
    instances_panel,
    number_chip,
    own_phrases,
    words_by_instance,
)


def _boxes(size, *boxes):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def _has(picture, color):
    return (picture == color).all(2)


def test_colors_are_the_palette():
    assert set(INSTANCE_COLORS) == set(overlay.PALETTE)
    assert overlay.PREDICTION_COLOR not in INSTANCE_COLORS[:5], "few instances look like the merged answer"


def test_each_instance_has_its_color():
    masks = _boxes((300, 300), (20, 20, 120, 120), (180, 180, 280, 280))
    image = np.full((300, 300, 3), 120, np.uint8)
    picture = instances_panel(image, masks.any(0), masks)
    for mask, color in zip(masks, INSTANCE_COLORS, strict=False):
        rows, columns = np.nonzero(_has(picture, color))
        assert len(rows) > 300 and mask[rows.min() + 8 : rows.max() - 8, columns.min() + 8 : columns.max() - 8].all()
    assert not _has(picture, overlay.PREDICTION_COLOR).any(), "the union is the answer: its line is covered"
    assert tuple(picture[40, 40]) == (120, 120, 120), "what is picked keeps its color"
    assert (picture[150, 150] > 120).all(), "the rest is faded"


def test_difference_to_the_merged_answer_shows():
    """The second instance is not in the answer, so it is faded; the answer has a box of no instance, which is lit and
    has the thin line of a prediction."""
    masks = _boxes((300, 300), (10, 10, 90, 90), (10, 200, 90, 280), (200, 100, 280, 180))
    image = np.full((300, 300, 3), 120, np.uint8)
    picture = instances_panel(image, masks[0] | masks[2], masks[:2])
    assert tuple(picture[30, 30]) == (120, 120, 120) and (picture[30, 220] > 120).all()
    assert tuple(picture[240, 140]) == (120, 120, 120)
    orange = picture[:, :, 0].astype(int) - picture[:, :, 2] > 60  # on grey, and so is yellow
    assert orange[195:205, 110:170].any(0).all() and not orange[220:260, 120:160].any()
    assert not orange[:150, :150].any(), "where the two agree, the instance's line covers it"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (96, 96), (480, 640), (2000, 1500)])
@pytest.mark.parametrize("count", [0, 1, 18])
def test_any_size_and_count(size, count):
    masks = np.zeros((count, *size), bool)
    for index, mask in enumerate(masks):
        mask[index * size[0] // 20 : (index + 2) * size[0] // 20, : size[1] // 2] = True
    image, merged = np.full(size, 90, np.uint8), np.ones(size, bool)
    picture = instances_panel(image, merged, masks)
    assert picture.shape == (*overlay.fit_for_display(image, masks)[0].shape[:2], 3) and picture.dtype == np.uint8
    assert picture.tobytes() == instances_panel(image, merged, masks).tobytes()


def test_number_lies_on_a_large_mask_and_beside_a_small_one():
    """Large: (50, 50) is the box's middle. Small, 10 x 10 from (150, 150): numbers at its corners cover some of it; the
    first that does not stands upon the middle of its top, pixel (150, 155)."""
    masks = _boxes((200, 200), (0, 0, 100, 100), (150, 150, 160, 160))
    large, small = chip_places(masks, [(20, 20), (20, 20)])
    assert abs(large[0] - 40) <= 1 and abs(large[1] - 40) <= 1
    assert small == (155 - 10, 150 - 20)


def test_numbers_keep_apart_and_inside():
    """Five instances on the same hundred pixels: apart in the middle of the image; in a corner the first three are."""
    for box, count in (((45, 45, 55, 55), 5), ((0, 90, 10, 100), 3)):
        places = chip_places(_boxes((100, 100), *[box] * 5), [(16, 16)] * 5)
        assert all(0 <= left <= 84 and 0 <= top <= 84 for left, top in places)
        for (left, top), (other_left, other_top) in itertools.combinations(places[:count], 2):
            assert abs(left - other_left) >= 16 or abs(top - other_top) >= 16


def test_empty_mask_has_a_place():
    assert chip_places(np.zeros((1, 30, 30), bool), [(10, 10)]) == [(0, 0)]


@pytest.mark.parametrize("size", [14, 18, 28])
def test_chip_reads_without_color(size):
    """Dark on white in the middle; numbers of one digit are round, longer ones are wider; two numbers differ."""
    one, other, long = (number_chip(text, size, (240, 228, 66)) for text in ("1", "2", "18"))
    assert one.size == other.size and one.width == one.height and long.width > one.width
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).sum() > 0
    middle = np.asarray(one.convert("L"))[size // 2 : -size // 2 + 1, size // 2 : -size // 2 + 1]
    assert middle.min() < 60 and np.asarray(one)[:, :, 3].min() == 0


def test_words_of_instances_without_weights():
    weights = [[0.1, 0.5, 0.4], None]
    assert words_by_instance("the  red star", weights) == [[1, 2], []]
    assert own_phrases("the  red star", weights) == ["red star", ""]
    assert own_phrases("the red star", []) == []


def test_an_instance_has_content_words_only():
    """Half of the greatest weight of a content word is enough, whatever "the" weighs. Punctuation does not count."""
    assert own_phrases("the box to the left of that", [[0.9, 0.4, 0.9, 0.9, 0.7, 0.9, 0.9]]) == ["box left"]
    assert own_phrases("the one that is of them", [[0.9] * 6]) == [""]
    assert words_by_instance("The, box; (that) isn't blue. ?", [[0.9] * 6]) == [[1, 3, 4]]
