import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.refshapes.draw import (
    PAINT,
    SINES,
    STRIPE_PAINT,
    coverage,
    drop_hidden,
    full_masks,
    inside_polygon,
    outline,
    render,
    sine,
    visible_masks,
)
from refseg.refshapes.placement import random_scene
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import COLORS, KINDS, UNIT, Background, Blob, Scene, SceneSpec


def test_sine_table():
    assert list(SINES) == [round(4096 * math.sin(math.radians(3 * i))) for i in range(31)]
    assert all(abs(sine(i) - 4096 * math.sin(math.radians(3 * i))) <= 0.5001 for i in range(-150, 300))


def test_every_color_has_paint():
    assert set(PAINT) == set(STRIPE_PAINT) == set(COLORS)


def test_inside_polygon_by_hand():
    """The triangle (0, 0), (8, 0), (0, 8) contains the points with x + y < 8, and none of its slanted edge."""
    points = np.array([1, 3, 5, 7])
    inside = inside_polygon(points[None, :], points[:, None], [(0, 0), (8, 0), (0, 8)])
    assert inside.tolist() == [[True, True, True, False], [True, True, False, False], [True] + [False] * 3, [False] * 4]


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_adds_up_to_the_exact_area(make_scene, kind):
    """The exact area is that of the shoelace formula, or pi r^2 with r = 14."""
    shape = make_scene((kind, "red", "large", 48.3, 47.1)).shapes[0]
    if kind == "circle":
        area = math.pi * 14**2
    else:
        corners = outline(shape)
        pairs = zip(corners, corners[1:] + corners[:1], strict=True)
        area = abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2 / UNIT**2
    _, counts = coverage(shape, 96, 96)
    assert counts.sum() / 16 == pytest.approx(area, rel=0.02)


def test_later_shapes_hide_earlier_ones(make_scene):
    """Upright squares of radius 14 reach 0.85 * 14 = 11.9 pixels: from 8.1 to 31.9 and from 18.1 to 41.9 along x.

    A pixel belongs to a square if half of it is covered: columns 8..31 and 18..41. The later square keeps all of its
    columns.
    """
    scene = make_scene(("square", "red", "large", 20, 40), ("square", "blue", "large", 30, 40))
    masks = visible_masks(full_masks(scene))
    assert np.flatnonzero(masks[0, 40]).tolist() == list(range(8, 18))
    assert np.flatnonzero(masks[1, 40]).tolist() == list(range(18, 42))
    pixels = render(scene, Stream(0))
    assert tuple(pixels[40, 10]) == PAINT["red"]
    assert tuple(pixels[40, 25]) == PAINT["blue"]
    assert tuple(pixels[80, 80]) == (128, 128, 128)


def test_soft_edge_by_hand(make_scene):
    """The square starts at x = 8.6. Of the samples of pixel 8, those at 8.625 and 8.875 are inside, half of them."""
    scene = make_scene(("square", "black", "large", 20.5, 40))
    assert render(scene, Stream(0))[40, 8].tolist() == [(20 + 128) // 2] * 3


def test_stripes_show_both_paints(make_scene):
    scene = make_scene(("square", "red", "large", 48, 48, "striped"))
    inner = render(scene, Stream(0))[40:56, 40:56].reshape(-1, 3)
    assert {tuple(pixel) for pixel in inner.tolist()} == {PAINT["red"], STRIPE_PAINT["red"]}


def test_hidden_shape_is_dropped(make_scene):
    """The large square covers the small circle. The other shapes get new ids from 0."""
    scene = make_scene(
        ("circle", "red", "small", 48, 48), ("square", "blue", "large", 48, 48), ("star", "red", "small", 15, 15)
    )
    visible, masks = drop_hidden(scene, SceneSpec())
    assert [(shape.id, shape.kind) for shape in visible.shapes] == [(0, "square"), (1, "star")]
    assert masks.shape == (2, 96, 96)


def test_background_by_hand():
    """A blob of radius 10 adds 12 at its center, 12 * (100 - 25) / 100 = 9 five pixels away, and 0 from 10 pixels on.

    Grain is at most 3, and equal in each block of 4 x 4 pixels.
    """
    background = Background(level=128, slope_x=0, slope_y=0, noise=0, blobs=(Blob(x=20, y=10, radius=10, change=12),))
    row = render(Scene(32, 48, background, ()), Stream(0))[10, :, 0]
    assert (row[20], row[25], row[30], row[47]) == (140, 137, 128, 128)
    grainy = Background(level=128, slope_x=0, slope_y=0, noise=0, grain=3)
    pixels = render(Scene(30, 48, grainy, ()), Stream(0)).astype(int)
    assert (pixels[:28].reshape(7, 4, 12, 4, 3) == pixels[:28:4, None, ::4, None]).all()
    assert set(np.unique(pixels)) == set(range(125, 132))


def test_scene_without_shapes(make_scene):
    scene, masks = drop_hidden(make_scene(), SceneSpec())
    assert scene.shapes == ()
    assert masks.shape == (0, 96, 96)
    assert (render(scene, Stream(0)) == 128).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_random_scenes_respect_their_spec(seed):
    spec = SceneSpec()
    scene, masks = drop_hidden(random_scene(96, 128, spec, Stream(seed)), spec)
    full = full_masks(scene)
    assert masks.sum(axis=0).max() <= 1  # disjoint
    assert (masks.sum(axis=(1, 2)) >= 30).all()
    assert (masks.sum(axis=(1, 2)) >= 0.6 * full.sum(axis=(1, 2))).all()
    assert not masks[:, [0, -1], :].any()
    assert not masks[:, :, [0, -1]].any()  # inside the image
    assert [shape.id for shape in scene.shapes] == list(range(len(scene.shapes)))
