"""Pictures of answers, and heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from refseg.instance import Instance
from refseg.visualization.answers import (
    HEAT,
    MIN_WIDTH,
    SINGLE,
    GridMap,
    answer_cell,
    heat_cell,
    heat_colors,
    heat_overlay,
    list_instances,
    percent,
)
from refseg.visualization.instances import phrase_strip
from refseg.visualization.overlay import Display, frame_with_words, grid, stack
from refseg.visualization.word_bars import INSTANCE_COLORS

SIZES = [(1, 1), (16, 16), (16, 2000), (2000, 16), (96, 96), (480, 640), (3000, 4000)]


def scene(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a gray image, and a mask of its upper left quarter."""
    mask = np.zeros(size, bool)
    mask[: (size[0] + 1) // 2, : (size[1] + 1) // 2] = True
    return np.full((*size, 3), 120, np.uint8), mask


@pytest.mark.parametrize("size", SIZES)
def test_any_size(size: tuple[int, int]) -> None:
    image, mask = scene(size)
    instances = [Instance(mask, 0.9, [0.1, 0.8, 0.1])]
    for found in ((), instances):
        cell = answer_cell(image, "the red box", mask, found, "5 %", display=SINGLE)
        assert cell.dtype == np.uint8 and MIN_WIDTH <= cell.shape[1] <= 1280 and cell.shape[0] < 1600
    heat = heat_cell(image, mask.astype(np.float32), "probability")
    assert heat.dtype == np.uint8 and MIN_WIDTH <= heat.shape[1] <= 640


def test_color_of_an_instance_on_the_image_and_in_the_phrase() -> None:
    image, mask = scene((300, 300))
    instances = [Instance(mask, 0.9, [0.1, 0.8, 0.1])]
    cell = answer_cell(image, "the red box", mask, instances, "5 %", display=Display(300, 300))
    rows = np.flatnonzero((cell == INSTANCE_COLORS[0]).all(2).any(1))
    assert rows.min() < 60 and rows.max() > 100, "under the word, and around the mask"


def test_instances_and_shares_in_words() -> None:
    mask = scene((10, 10))[1]
    instances = [Instance(mask, 0.904, [0.1, 0.8, 0.1]), Instance(mask, 0.5)]
    assert list_instances("the red box", instances) == "1 \u201cred\u201d 0.90; 2 0.50"
    assert list_instances("the red box", []) == ""
    assert list_instances("the red box", instances * 10).endswith("; and 8 more")
    assert [percent(share) for share in (0.0004, 0.001, 0.25)] == ["less than 0.1 %", "0.1 %", "25.0 %"]


def test_instances_of_an_empty_mask_are_not_drawn() -> None:
    image, mask = scene((320, 320))
    plain, cell = (
        answer_cell(image, "a box", mask & False, instances, "nothing here", display=Display(320, 320))
        for instances in ((), [Instance(mask, 0.9)])
    )
    top = phrase_strip("a box", (), 320).shape[0]
    assert np.array_equal(cell, plain) and np.array_equal(cell[top : top + 320], frame_with_words(image))


def test_heat_colors_by_hand() -> None:
    """A span from 2 to 4: its ends, its middle, a value beyond it, and NaN."""
    colors = heat_colors(np.array([2.0, 4.0, 3.0, 9.0, np.nan]), (2.0, 4.0))
    assert colors.tolist() == [
        HEAT[0].tolist(),
        HEAT[-1].tolist(),
        HEAT[2].tolist(),
        HEAT[-1].tolist(),
        HEAT[0].tolist(),
    ]
    assert heat_colors(np.zeros(3), (0.0, 0.0)).tolist() == [HEAT[0].tolist()] * 3, "a span of no width"
    lightness = HEAT @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness) > 25).all(), "the scale is readable in gray"


def test_values_that_are_not_finite_stay_gray() -> None:
    image = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    values = np.full((4, 4), np.nan, np.float32)
    values[:2] = 1.0
    picture = heat_overlay(image, values, (0.0, 1.0))
    assert (picture[2:] == picture[2:, :, :1]).all() and not (picture[:2] == picture[:2, :, :1]).all()


def test_marked_places_are_outlined() -> None:
    image, mask = scene((300, 300))
    values = np.zeros((300, 300), np.float32)
    plain, marked = (heat_cell(image, values, "x", marked=m) for m in (None, mask))
    assert (marked == 255).all(2).sum() > (plain == 255).all(2).sum() + 300


def test_grid_map_by_hand() -> None:
    """Two cells over four pixels have their centers at pixels 0.5 and 2.5. Between them the values go from 0 to 1: they
    are 1/4 and 3/4 at pixels 1 and 2. Padding on the right is not visible."""
    values = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_allclose(GridMap(values, (1, 2)).at((1, 4)), [[0, 0.25, 0.75, 1]], atol=1e-6)
    np.testing.assert_allclose(GridMap(values, (1, 1)).at((1, 1)), [[0]], atol=1e-6)
    assert GridMap(values, (1, 1.5)).cells_at((2, 3)).tolist() == [[0, 0, 1]] * 2
    padded = np.pad(np.arange(12, dtype=np.float32).reshape(3, 4), ((0, 2), (0, 1)), constant_values=99)
    np.testing.assert_allclose(GridMap(padded, (3, 4)).at((3, 4)), padded[:3, :4])


def test_grids_and_stacks() -> None:
    cells = [np.zeros((10 + k, 20, 3), np.uint8) for k in range(4)]
    sheet = grid(cells, columns=3, margin=5)
    assert sheet.shape == (5 + 12 + 5 + 13 + 5, 5 + 3 * 25, 3)
    assert stack([cells[0], np.zeros((5, 40, 3), np.uint8)], 30).shape == (15, 40, 3)
    with pytest.raises(ValueError, match="at least one cell"):
        grid([])
