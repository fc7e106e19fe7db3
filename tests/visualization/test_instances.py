"""Pictures of instances: their outlines, their numbers, and the merged mask."""

import itertools

import numpy as np
import pytest

from refseg.visualization import overlay
from refseg.visualization.instances import chip_places, instances_panel, number_chip
from refseg.visualization.word_bars import INSTANCE_COLORS


def _boxes(size, *boxes):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def _has(picture, color):
    return (picture == color).all(2)


def test_each_instance_has_its_color():
    masks = _boxes((300, 300), (20, 20, 120, 120), (180, 180, 280, 280))
    image = np.full((300, 300, 3), 120, np.uint8)
    picture = instances_panel(image, masks.any(0), masks)
    for mask, color in zip(masks, INSTANCE_COLORS, strict=False):
        rows, columns = np.nonzero(_has(picture, color))
        assert len(rows) > 300 and mask[rows.min() + 8 : rows.max() - 8, columns.min() + 8 : columns.max() - 8].all()
    assert not _has(picture, overlay.PREDICTION_COLOR).any(), (
        "the instances' outlines cover the line around their union"
    )
    assert tuple(picture[40, 40]) == (120, 120, 120), "the instances keep their colors"
    assert (picture[150, 150] > 120).all(), "the rest is faded"


def test_merged_mask_that_differs_from_the_instances():
    """The second instance is not in the merged mask, so it is faded. The merged mask has a box of no instance, which is
    lit and has the thin line of a prediction."""
    masks = _boxes((300, 300), (10, 10, 90, 90), (10, 200, 90, 280), (200, 100, 280, 180))
    image = np.full((300, 300, 3), 120, np.uint8)
    picture = instances_panel(image, masks[0] | masks[2], masks[:2])
    assert tuple(picture[30, 30]) == (120, 120, 120) and (picture[30, 220] > 120).all()
    assert tuple(picture[240, 140]) == (120, 120, 120)
    orange = picture[:, :, 0].astype(int) - picture[:, :, 2] > 60  # on gray; yellow has it too
    assert orange[195:205, 110:170].any(0).all() and not orange[220:260, 120:160].any()
    assert not orange[:150, :150].any(), "where the two agree, the instance's outline covers the line"


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


def test_number_on_a_large_mask_and_beside_a_small_one():
    """Large: (50, 50) is the box's middle. Small, 10 x 10 from (150, 150): numbers at its corners cover some of it. The
    first one that covers nothing is above the middle of its top, pixel (150, 155)."""
    masks = _boxes((200, 200), (0, 0, 100, 100), (150, 150, 160, 160))
    large, small = chip_places(masks, [(20, 20), (20, 20)])
    assert abs(large[0] - 40) <= 1 and abs(large[1] - 40) <= 1
    assert small == (155 - 10, 150 - 20)


def test_numbers_do_not_overlap_and_are_inside_the_image():
    """Five instances on the same hundred pixels. In the middle of the image there is room for all numbers, in a corner
    for three."""
    for box, count in (((45, 45, 55, 55), 5), ((0, 90, 10, 100), 3)):
        places = chip_places(_boxes((100, 100), *[box] * 5), [(16, 16)] * 5)
        assert all(0 <= left <= 84 and 0 <= top <= 84 for left, top in places)
        for (left, top), (other_left, other_top) in itertools.combinations(places[:count], 2):
            assert abs(left - other_left) >= 16 or abs(top - other_top) >= 16


def test_number_of_an_empty_mask():
    assert chip_places(np.zeros((1, 30, 30), bool), [(10, 10)]) == [(0, 0)]


@pytest.mark.parametrize("size", [14, 18, 28])
def test_number_chip(size):
    """It is dark on white in the middle. It is round for one digit, and wider for more."""
    one, other, long = (number_chip(text, size, (240, 228, 66)) for text in ("1", "2", "18"))
    assert one.size == other.size and one.width == one.height and long.width > one.width
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).sum() > 0
    middle = np.asarray(one.convert("L"))[size // 2 : -size // 2 + 1, size // 2 : -size // 2 + 1]
    assert middle.min() < 60 and np.asarray(one)[:, :, 3].min() == 0
