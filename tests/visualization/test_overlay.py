"""Masks on images, and sizes of pictures."""

import numpy as np
import pytest
from scipy import ndimage

from refseg.visualization import overlay


def _scene(height=60, width=80):
    """Return a gray image with noise, and two masks: a rectangle inside, and one that touches the border."""
    image = np.random.default_rng(0).integers(60, 190, (height, width, 3)).astype(np.uint8)
    masks = np.zeros((2, height, width), bool)
    masks[0, 10:30, 20:50] = True
    masks[1, 45:, 60:] = True
    return image, masks


def test_pixels_away_from_masks_and_outlines_do_not_change():
    image, masks = _scene()
    before = image.copy()
    width = 3.0
    result = overlay.overlay_masks(image, masks, outline=width)
    changed = (result != image).any(2)
    boundary = np.zeros(changed.shape, bool)
    for mask in masks:
        inner = ndimage.binary_erosion(np.pad(mask, 1))[1:-1, 1:-1]
        boundary |= ndimage.distance_transform_edt(~(mask & ~inner)) <= overlay.outline_reach(width) + 1
    assert not (changed & ~(masks.any(0) | boundary)).any()
    assert changed[masks.any(0)].all()
    assert (image == before).all()


def test_without_outline_only_the_masks_change():
    image, masks = _scene()
    result = overlay.overlay_masks(image, masks, outline=0)
    assert ((result != image).any(2) == masks.any(0)).all()


def test_tint_by_hand():
    """alpha 0.5 between 100 and the color (200, 0, 50): (150, 50, 75)."""
    image = np.full((4, 4, 3), 100, np.uint8)
    result = overlay.overlay_masks(image, np.ones((1, 4, 4), bool), colors=[(200, 0, 50)], alpha=0.5, outline=0)
    assert (result == (150, 50, 75)).all()


def test_outline_has_soft_edges_and_full_color():
    image = np.full((64, 64, 3), 255, np.uint8)
    y, x = np.mgrid[:64, :64]
    mask = (y - 32) ** 2 + (x - 32) ** 2 < 400
    result = overlay.overlay_masks(image, mask[None], colors=[(0, 0, 255)], alpha=0, outline=4)
    assert (result == (0, 0, 255)).all(2).sum() > 100  # about 2 pi 20 * 4 pixels of pure line
    assert len(np.unique(result[:, :, 0])) > 20  # and many shades at its edges


def test_same_input_same_picture():
    image, masks = _scene()
    assert overlay.overlay_masks(image, masks).tobytes() == overlay.overlay_masks(image, masks).tobytes()


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5)])
def test_empty_masks_and_tiny_images(count, size):
    image = np.full((*size, 3), 90, np.uint8)
    result = overlay.overlay_masks(image, np.zeros((count, *size), bool))
    assert (result == image).all() and result.dtype == np.uint8


def test_full_mask_on_one_pixel():
    result = overlay.overlay_masks(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), bool))
    assert result.shape == (1, 1, 3) and result.any()


def test_more_masks_than_colors():
    """One column per mask: the eighth mask has the first color again."""
    masks = np.eye(8, dtype=bool)[:, None, :].repeat(4, axis=1)  # (8, 4, 8)
    result = overlay.overlay_masks(np.zeros((4, 8, 3), np.uint8), masks, outline=0, alpha=1.0)
    assert [tuple(pixel) for pixel in result[0].tolist()] == [*overlay.PALETTE, overlay.PALETTE[0]]


def test_gray_image_becomes_rgb():
    result = overlay.overlay_masks(np.full((5, 6), 80, np.uint8), np.zeros((0, 5, 6), bool))
    assert result.shape == (5, 6, 3) and (result == 80).all()


@pytest.mark.parametrize(
    ("image", "masks", "error", "words"),
    [
        (np.zeros((4, 4, 3)), np.zeros((1, 4, 4), bool), TypeError, "uint8"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((1, 4, 4), bool), ValueError, "RGB"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8), TypeError, "bool"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool), ValueError, "mask\\[None\\]"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 5), bool), ValueError, "like the image"),
    ],
)
def test_bad_input(image, masks, error, words):
    with pytest.raises(error, match=words):
        overlay.overlay_masks(image, masks)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_enlarging(factor):
    """Flat colors, a single pixel, a full mask and an empty one stay what they are."""
    image = np.full((10, 12, 3), 77, np.uint8)
    masks = np.zeros((3, 10, 12), bool)
    masks[0, 4, 4] = True
    masks[1] = True
    large, fitted = overlay.fit_for_display(image, masks, overlay.Display(12 * factor, 1000))
    assert large.shape == (10 * factor, 12 * factor, 3) and (large == 77).all()
    assert fitted.shape == (3, 10 * factor, 12 * factor)
    assert fitted[0].any() and fitted[1].all() and not fitted[2].any()


def test_enlarged_mask_keeps_its_place_and_area():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 8:18] = True
    _, large = overlay.fit_for_display(np.zeros((20, 20), np.uint8), mask, overlay.Display(60, 1000))
    exact = np.kron(mask[0], np.ones((3, 3), bool))
    assert (large[0] & exact).sum() / (large[0] | exact).sum() > 0.98


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((96, 96), (288, 288)),
        ((480, 300), (448, 280)),
        ((1024, 768), (448, 336)),
        ((1, 1), (288, 288)),
        ((300, 2), (300, 2)),
    ],
)
def test_fit_for_display(size, shown):
    image, masks = np.zeros((*size, 3), np.uint8), np.zeros((1, *size), bool)
    masks[0, 0, 0] = True
    image, masks = overlay.fit_for_display(image, masks)
    assert image.shape == (*shown, 3) and masks.shape == (1, *shown)
    assert masks.any(), "a single pixel survives any change of size"


def test_panel_keeps_the_colors_in_the_mask():
    """A tint would change the color of "the red circle"."""
    image = np.zeros((300, 300, 3), np.uint8)
    image[:] = (220, 40, 40)
    mask = np.zeros((300, 300), bool)
    mask[100:200, 100:200] = True
    panel = overlay.mask_panel(image, mask, color=overlay.ORANGE)
    assert tuple(panel[150, 150]) == (220, 40, 40)
    assert (panel[10, 10] > image[10, 10]).all(), "the rest is faded"


def test_empty_panels_are_distinguishable():
    image, empty = np.full((96, 96, 3), 120, np.uint8), np.zeros((96, 96), bool)
    full = ~empty
    pictures = [
        overlay.mask_panel(image, empty, color=overlay.ORANGE),
        overlay.mask_panel(image, empty, color=overlay.ORANGE, empty=overlay.EMPTY_MASK),
        overlay.mask_panel(image, full, color=overlay.ORANGE),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 3
    rejected = overlay.mask_panel(image, full, color=overlay.ORANGE, rejected=True)
    assert rejected.tobytes() == pictures[0].tobytes(), "the mask of a rejected answer is not drawn"
