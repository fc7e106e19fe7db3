"""Masks drawn on images: pure functions from numpy arrays to numpy arrays.

Letters: K masks, H x W pixels. Images are (H, W, 3) uint8 RGB, or (H, W) uint8 gray, which becomes RGB.
Masks have a tint, and an outline with a dark rim that is visible on any background. A picture can be read without
color vision, since its message is also written in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from refseg.visualization.captions import load_font

Color = tuple[int, int, int]

# Okabe and Ito's palette, which stays distinct under the common kinds of color blindness.
ORANGE: Color = (230, 159, 0)
SKY_BLUE: Color = (86, 180, 233)
GREEN: Color = (0, 158, 115)
YELLOW: Color = (240, 228, 66)
BLUE: Color = (0, 114, 178)
VERMILLION: Color = (213, 94, 0)
PURPLE: Color = (204, 121, 167)
PALETTE: tuple[Color, ...] = (ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILLION, PURPLE)

PREDICTION_COLOR = ORANGE
GROUND_TRUTH_COLOR = SKY_BLUE
NOTHING_HERE = "nothing here"  # the no-target answer
EMPTY_MASK = "empty mask"  # a prediction without a pixel that was not rejected


@dataclass(frozen=True)
class Display:
    """The size of pictures.

    Args:
        edge: Small images are enlarged toward this length of the longer side, in pixels.
        largest: Large images are reduced to this length of the longer side.
    """

    edge: int
    largest: int


THUMBNAIL = Display(288, 448)  # several on a page

_RIM: Color = (0, 0, 0)
_RIM_OPACITY = 0.6
_SOFTNESS = 1.2  # pixels of smoothing along an outline
_FADE = 0.6  # opacity of the white over the pixels outside a mask


# Drawing --------------------------------------------------------------------------------------------------------------


def overlay_masks(
    image: np.ndarray,
    masks: np.ndarray,
    *,
    colors: Sequence[Color] = PALETTE,
    alpha: float = 0.35,
    outline: float | None = None,
) -> np.ndarray:
    """Draw masks (K, H, W) on an image, and return a new (H, W, 3) array.

    Only pixels of a mask, and those within `outline_reach(width)` of its boundary, change.

    Args:
        image: The image.
        masks: (K, H, W) bool. Later masks are drawn on top.
        colors: Color of each mask, starting over if there are more masks than colors.
        alpha: Opacity of the tint; 0 draws none.
        outline: Width of the outline in pixels; 0 draws none. By default it follows the image's size.
    """
    canvas = as_rgb(image).astype(np.float32)
    masks = _check_masks(masks, canvas.shape[:2])
    width = outline_width(*canvas.shape[:2]) if outline is None else outline
    reach = int(np.ceil(outline_reach(width))) + 1
    for index, mask in enumerate(masks):
        # Tint
        color = np.asarray(colors[index % len(colors)], np.float32)
        if alpha > 0:
            canvas[mask] += alpha * (color - canvas[mask])
        if width == 0 or not mask.any():
            continue
        # Outline: a dark rim, and a colored line on it, in the part of the image that they can reach
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = max(0, rows[0] - reach), max(0, columns[0] - reach)
        window = np.s_[top : rows[-1] + reach + 1, left : columns[-1] + reach + 1]
        distance = np.abs(ndimage.gaussian_filter(_signed_distance(mask[window], closed=True), _SOFTNESS, truncate=3))
        view = canvas[window]
        for half, tone, opacity in ((width / 2 + _rim_width(width), _RIM, _RIM_OPACITY), (width / 2, color, 1.0)):
            coverage = opacity * np.clip(half + 0.5 - distance, 0, 1)[:, :, None]
            view += coverage * (np.asarray(tone, np.float32) - view)
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def outline_width(height: int, width: int) -> float:
    """Return the outline's width, which grows more slowly than the image: 2.8 pixels at 288, 5.3 at 1024."""
    return max(1.5, min(height, width) ** 0.5 / 6)


def outline_reach(width: float) -> float:
    """Return the distance from a mask's boundary within which its outline may change a pixel."""
    return width / 2 + _rim_width(width) + 2 * _SOFTNESS


def _rim_width(width: float) -> float:
    return max(0.75, 0.3 * width)


def spotlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fade everything outside the mask (H, W) toward white.

    The mask keeps its colors: a tint would turn "the red circle" into an orange one.
    """
    image = as_rgb(image)
    pale = np.rint(image + _FADE * (255.0 - image)).astype(np.uint8)
    return np.where(mask[:, :, None], image, pale)


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    color: Color,
    rejected: bool = False,
    empty: str = NOTHING_HERE,
    display: Display = THUMBNAIL,
) -> np.ndarray:
    """Draw one answer: the mask (H, W) lit and outlined, or a frame with a few words.

    The words are "nothing here" if the answer is rejected, and `empty` if the mask has no pixel.
    """
    shown, masks = fit_for_display(image, mask[None], display)
    if rejected or not mask.any():
        return frame_with_words(shown, NOTHING_HERE if rejected else empty)
    return overlay_masks(spotlight(shown, masks[0]), masks, colors=(color,), alpha=0.0)


def frame_with_words(image: np.ndarray, words: str = NOTHING_HERE) -> np.ndarray:
    """Draw the faded image in a dashed frame, with the words in its middle if they fit."""
    height, width = image.shape[:2]
    canvas = Image.fromarray(spotlight(image, np.zeros((height, width), bool)))
    draw = ImageDraw.Draw(canvas)
    # Dark dashes on a white frame
    thickness = max(1, round(outline_width(height, width) * 0.75))
    draw.rectangle((0, 0, width - 1, height - 1), outline=(255, 255, 255), width=2 * thickness)
    dash = 4 * thickness
    for start in range(0, width, 2 * dash):
        draw.rectangle((start, 0, start + dash, thickness - 1), fill=(0, 0, 0))
        draw.rectangle((start, height - thickness, start + dash, height - 1), fill=(0, 0, 0))
    for start in range(0, height, 2 * dash):
        draw.rectangle((0, start, thickness - 1, start + dash), fill=(0, 0, 0))
        draw.rectangle((width - thickness, start, width - 1, start + dash), fill=(0, 0, 0))
    # The words in a box
    font = load_font(max(12, min(28, min(height, width) // 14)))
    left, top, right, bottom = draw.textbbox((width / 2, height / 2), words, font=font, anchor="mm")
    pad = (bottom - top) * 0.6
    box = (left - pad, top - pad, right + pad, bottom + pad)
    if box[0] >= 0 and box[1] >= 0:
        draw.rounded_rectangle(box, radius=pad / 2, fill=(255, 255, 255), outline=(0, 0, 0), width=thickness)
        draw.text((width / 2, height / 2), words, font=font, anchor="mm", fill=(0, 0, 0))
    return np.asarray(canvas)


# Sizes ----------------------------------------------------------------------------------------------------------------


def fit_for_display(
    image: np.ndarray, masks: np.ndarray, display: Display = THUMBNAIL
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge (by an integer) or reduce the image and masks (K, H, W) for a display.

    Enlarged masks have smooth edges. A mask of one pixel or one line survives any change of size.
    """
    image = as_rgb(image)
    height, width = image.shape[:2]
    masks = _check_masks(masks, (height, width))
    size = reduced_size((height, width), display)
    if size != (height, width):
        # Reduce. A mask that would vanish keeps every pixel it touches.
        fitted = np.zeros((len(masks), *size), bool)
        for out, mask in zip(fitted, masks, strict=True):
            whole = Image.fromarray(mask.astype(np.uint8) * 255)
            share = np.asarray(whole.resize(size[::-1], Image.Resampling.BOX))
            out[:] = share >= 128 if (share >= 128).any() else share > 0
        return reduce_image(image, size), fitted
    factor = max(1, round(display.edge / max(height, width)))
    if factor == 1:
        return image, masks
    # Enlarge. The zero line of the enlarged distance to a mask's boundary is the new boundary.
    fitted = np.zeros((len(masks), height * factor, width * factor), bool)
    for out, mask in zip(fitted, masks, strict=True):
        if mask.any():
            distance = Image.fromarray(_signed_distance(mask, closed=False).clip(-2, 2))
            out[:] = np.asarray(distance.resize(out.shape[::-1], Image.Resampling.BICUBIC)) > 0
    enlarged = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    return np.asarray(enlarged), fitted


def reduced_size(size: tuple[int, int], display: Display) -> tuple[int, int]:
    """Return the (height, width) of an image on a display, reduced if it would not fit."""
    scale = display.largest / max(size)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def reduce_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce the image to a (height, width)."""
    reduced = Image.fromarray(as_rgb(image)).resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(reduced)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return the image as (H, W, 3) uint8. A gray one (H, W) gets three equal channels."""
    if image.dtype != np.uint8:
        raise TypeError(f"an image must be uint8 with values 0..255, not {image.dtype}: scale and convert it first")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be (H, W, 3) RGB or (H, W) gray, not {image.shape}")
    return image


def _check_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if masks.dtype != bool:
        raise TypeError(f"masks must be bool, not {masks.dtype}: threshold them first")
    if masks.ndim != 3 or masks.shape[1:] != size:
        raise ValueError(
            f"masks must be (K, {size[0]}, {size[1]}) like the image, not {masks.shape}; one is mask[None]"
        )
    return masks


def _signed_distance(mask: np.ndarray, *, closed: bool) -> np.ndarray:
    """Return the distances of pixel centers to the boundary of a mask that is not empty: (H, W), positive inside.

    `closed`: the image's border is a boundary too.
    """
    padded = np.pad(mask, 1, mode="constant" if closed else "edge")
    if padded.all():
        return np.full(mask.shape, np.inf, np.float32)
    inside = distance_inside(padded) - 0.5
    outside = distance_inside(~padded) - 0.5
    return np.where(padded, inside, -outside)[1:-1, 1:-1].astype(np.float32)


def distance_inside(mask: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance from each pixel of the mask to the nearest pixel outside it: (H, W), 0 outside."""
    return cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


# Arrangement ----------------------------------------------------------------------------------------------------------


def grid(cells: Sequence[np.ndarray], *, columns: int = 3, margin: int = 16) -> np.ndarray:
    """Arrange cells in rows on white: (H, W, 3). The cells of a row are aligned at the bottom."""
    if not cells:
        raise ValueError("a grid needs at least one cell")
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.shape[0] for cell in row) + margin for row in rows]
    width = max(cell.shape[1] for cell in cells) + margin
    sheet = np.full((sum(heights) + margin, min(columns, len(cells)) * width + margin, 3), 255, np.uint8)
    bottom = 0
    for row, height in zip(rows, heights, strict=True):
        bottom += height
        for column, cell in enumerate(row):
            left = margin + column * width
            sheet[bottom - cell.shape[0] : bottom, left : left + cell.shape[1]] = cell
    return sheet


def stack(parts: Sequence[np.ndarray], width: int = 0) -> np.ndarray:
    """Stack pictures on white, at least `width` wide."""
    width = max(width, *(part.shape[1] for part in parts))
    return np.concatenate([pad_to(part, part.shape[0], width) for part in parts])


def pad_to(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Add white below and to the right of the picture."""
    return np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
