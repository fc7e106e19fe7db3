"""Overlays on made-up pictures: what changes, what does not, and the empty cases."""

import numpy as np
import pytest
from scipy import ndimage

from refseg.visualization import overlay
from refseg.visualization.captions import caption, load_font, wrap


def _scene(height=60, width=80):
    """A grey image with noise, and two masks: a rectangle inside, and one that touches the border."""
    image = np.random.default_rng(0).integers(60, 190, (height, width, 3)).astype(np.uint8)
    masks = np.zeros((2, height, width), bool)
    masks[0, 10:30, 20:50] = True
    masks[1, 45:, 60:] = True
    return image, masks


def test_overlay_changes_only_masks_and_outline():
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


def test_no_outline_changes_exactly_the_mask():
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


def test_deterministic():
    image, masks = _scene()
    assert overlay.overlay_masks(image, masks).tobytes() == overlay.overlay_masks(image, masks).tobytes()
    pictures = [overlay.side_by_side(image, masks[0], masks[1], text="a box", iou=0.0, right=False) for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


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


def test_grey_image_becomes_rgb():
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
def test_wrong_input_is_named(image, masks, error, words):
    with pytest.raises(error, match=words):
        overlay.overlay_masks(image, masks)


def test_upscale_keeps_flat_colors_and_lone_pixels():
    image = np.full((10, 12, 3), 77, np.uint8)
    assert (overlay.upscale(image, 3) == 77).all() and overlay.upscale(image, 3).shape == (30, 36, 3)
    masks = np.zeros((3, 10, 12), bool)
    masks[0, 4, 4] = True
    masks[1] = True
    for factor in (1, 2, 3, 5):
        large = overlay.upscale_masks(masks, factor)
        assert large.shape == (3, 10 * factor, 12 * factor)
        assert large[0].any() and large[1].all() and not large[2].any()
    with pytest.raises(ValueError, match="whole number"):
        overlay.upscale(image, 0)


def test_upscaled_mask_keeps_its_place_and_area():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 8:18] = True
    large = overlay.upscale_masks(mask, 3)[0]
    exact = np.kron(mask[0], np.ones((3, 3), bool))
    assert (large & exact).sum() / (large | exact).sum() > 0.98


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


def test_panel_keeps_the_colors_of_what_is_picked():
    """A tint would change "the red circle" into another color; the middle of the mask must stay as it is."""
    image = np.zeros((300, 300, 3), np.uint8)
    image[:] = (220, 40, 40)
    mask = np.zeros((300, 300), bool)
    mask[100:200, 100:200] = True
    panel = overlay.mask_panel(image, mask, color=overlay.ORANGE)
    assert tuple(panel[150, 150]) == (220, 40, 40)
    assert (panel[10, 10] > image[10, 10]).all(), "the rest is faded"


def test_panels_of_nothing_are_told_apart():
    image, empty = np.full((96, 96, 3), 120, np.uint8), np.zeros((96, 96), bool)
    full = ~empty
    pictures = [
        overlay.mask_panel(image, empty, color=overlay.ORANGE),
        overlay.mask_panel(image, empty, color=overlay.ORANGE, empty=overlay.EMPTY_MASK),
        overlay.mask_panel(image, full, color=overlay.ORANGE),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 3
    rejected = overlay.mask_panel(image, full, color=overlay.ORANGE, rejected=True)
    assert rejected.tobytes() == pictures[0].tobytes(), "a rejected answer shows nothing, whatever its mask"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (96, 96), (30, 200), (700, 500)])
@pytest.mark.parametrize("right", [True, False, None])
def test_side_by_side_at_any_size(size, right):
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    picture = overlay.side_by_side(image, mask, ~mask, text="the " * 60, iou=0.5, right=right, rejected=True)
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    assert picture.shape[1] >= 2 * 160


def test_wrap_fits_and_keeps_the_words():
    font = load_font(14)
    text = "the small green triangle to the left of the large yellow circle"
    lines = wrap(text, 120, font)
    assert " ".join(lines) == text and len(lines) > 2
    assert all(font.getlength(line) <= 120 for line in lines)


def test_wrap_breaks_long_words_and_stops():
    font = load_font(14)
    lines = wrap("x" * 1000, 100, font, max_lines=3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert wrap("", 100, font) == [""]
    assert wrap("wide", 1, font) == list("wide")


def test_caption_marks_differ_without_color():
    strips = [caption("IoU 0.50", 200, mark=mark).mean(2) < 128 for mark in (True, False)]
    assert strips[0].shape == strips[1].shape and (strips[0] != strips[1]).sum() > 20
