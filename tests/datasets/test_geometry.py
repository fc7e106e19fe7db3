from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from refseg.datasets import geometry as g

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1))
sides = st.integers(1, 15)


def test_move_points() -> None:
    """Move the point (3, 1) of an image of height 4 and width 10.

    Mirrored: x = 10 - 3 = 7. Twice as wide: x = 6. Shifted by (-2, 5): (1, 6).
    """
    point = np.array([[3.0, 1.0]])
    assert g.move_points(g.mirroring(10), point).tolist() == [[7, 1]]
    assert g.move_points(np.diag([2.0, 1.0, 1.0]), point).tolist() == [[6, 1]]
    assert g.move_points(g.translation(-2, 5), point).tolist() == [[1, 6]]
    assert g.move_points(g.resizing((4, 10), (8, 5)), point).tolist() == [[1.5, 2]]


def test_move_and_clip_boxes() -> None:
    """Mirrored in a width of 10, x 2..5 becomes 5..8."""
    assert g.move_box(g.mirroring(10), (2, 1, 5, 3)) == (5, 1, 8, 3)
    assert g.clip_box((-3, 1, 12, 9), (4, 10)) == (0, 1, 10, 4)


def test_box_of_mask() -> None:
    mask = np.zeros((4, 6), np.uint8)
    assert g.box_of_mask(mask) == (0, 0, 0, 0)
    mask[1, 2] = mask[3, 4] = 1
    assert g.box_of_mask(mask) == (2, 1, 5, 4)


def test_is_resizing() -> None:
    resize = g.resizing((4, 10), (8, 8))
    assert g.is_resizing(resize, (4, 10), (8, 8))
    for step in (g.mirroring(8), g.translation(1, 0), np.diag([1.1, 1.0, 1.0])):
        assert not g.is_resizing(step @ resize, (4, 10), (8, 8))


@given(masks, sides, sides)
def test_resized_masks_equal_pillow(mask: np.ndarray, height: int, width: int) -> None:
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    assert np.array_equal(g.warp_mask(mask, g.resizing(mask.shape, (height, width)), (height, width)), expected)


@given(masks)
def test_exact_mask_warps(mask: np.ndarray) -> None:
    height, width = mask.shape
    assert np.array_equal(g.warp_mask(mask, np.eye(3), mask.shape), mask)
    assert np.array_equal(g.warp_mask(mask, g.mirroring(width), mask.shape), mask[:, ::-1])
    shifted = g.warp_mask(mask, g.translation(1, -1), mask.shape)
    expected = np.zeros_like(mask)
    expected[: height - 1, 1:] = mask[1:, : width - 1]
    assert np.array_equal(shifted, expected)


@pytest.mark.parametrize("matrix", [np.diag([1.7, 0.6, 1.0]), g.translation(2.2, -3.4), g.mirroring(20.3)])
def test_mask_warps_agree_with_opencv(matrix: np.ndarray) -> None:
    """OpenCV puts the center of pixel i at i instead of i + 0.5. No pixel center is near an edge here."""
    mask = np.random.default_rng(0).integers(0, 2, (20, 20)).astype(np.uint8)
    between_centers = (g.translation(-0.5, -0.5) @ matrix @ g.translation(0.5, 0.5))[:2]
    expected = cv2.warpAffine(mask, between_centers, (23, 17), flags=cv2.INTER_NEAREST)
    assert np.array_equal(g.warp_mask(mask, matrix, (17, 23)), expected)
