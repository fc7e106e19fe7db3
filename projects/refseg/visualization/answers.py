"""Pictures of answers about an image: a panel for each phrase, and heat maps of places and words.

Letters: H x W pixels of the image, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from refseg.instance import Instance
from refseg.visualization.captions import caption, caption_size
from refseg.visualization.instances import answer_panel, phrase_strip
from refseg.visualization.overlay import THUMBNAIL, Display, as_rgb, fit_for_display, overlay_masks, stack
from refseg.visualization.word_bars import instance_phrases

SINGLE = Display(640, 1280)  # alone in its picture
ONE_OF_FEW = Display(448, 640)
FEW = 9
MIN_WIDTH = 320  # pixels, so that words have room below and above a thin image
MAX_LISTED = 12  # instances whose words and scores are written out

# Dark blue to light yellow, which every kind of color vision can distinguish
HEAT = np.array([(8, 16, 64), (0, 84, 147), (0, 158, 160), (146, 205, 105), (250, 236, 90)], np.float32)
HEAT_OPACITY = (0.4, 0.85)  # of the lowest value and of the highest
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class GridMap:
    """Values (h, w) on a model's grid. The image covers its upper left `extent` (rows, columns; may be fractions)."""

    values: np.ndarray
    extent: tuple[float, float]

    def at(self, size: tuple[int, ...]) -> np.ndarray:
        """Interpolate the values between the cells' centers at the pixels of an image of that size: (H, W) float32."""
        columns, rows = (
            ((np.arange(length, dtype=np.float32) + 0.5) * (extent / length) - 0.5)
            for length, extent in zip(size[::-1], self.extent[::-1], strict=True)
        )
        values = np.asarray(self.values, np.float32)
        x, y = np.broadcast_arrays(columns[None], rows[:, None])
        return cv2.remap(values, x.copy(), y.copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def cells_at(self, size: tuple[int, ...]) -> np.ndarray:
        """Return the value of the cell that each pixel lies in: (H, W)."""
        rows, columns = (
            np.minimum(np.arange(length) / length * extent, cells - 1).astype(int)
            for length, extent, cells in zip(size, self.extent, self.values.shape, strict=True)
        )
        return self.values[rows[:, None], columns]


def display_for(count: int) -> Display:
    """Return the panel size for a picture with `count` panels."""
    if count == 1:
        return SINGLE
    return ONE_OF_FEW if count <= FEW else THUMBNAIL


def columns_for(count: int) -> int:
    return 3 if count <= FEW else 5


def answer_cell(
    image: np.ndarray,
    text: str,
    merged: np.ndarray,
    instances: Sequence[Instance],
    in_words: str,
    *,
    display: Display,
) -> np.ndarray:
    """Draw the phrase, the image with what it refers to, and the answer in words with the instances' words and scores.

    Args:
        image: (H, W, 3).
        text: The phrase.
        merged: (H, W) bool; an empty mask means "nothing here", and instances are not drawn.
        instances: The objects one by one, best first.
        in_words: The answer in words.
        display: Size of the picture.
    """
    nothing = not merged.any()
    shown = () if nothing else instances
    panel = answer_panel(image, merged, shown, rejected=nothing, display=display)
    width = max(MIN_WIDTH, panel.shape[1])
    lines = [in_words, f"instances: {list_instances(text, shown)}"] if shown else [in_words]
    return stack([phrase_strip(text, shown, width), panel, *(caption(line, width) for line in lines)], width)


def percent(share: float) -> str:
    """Write a share such as "5.8 %"; a small one is never shown as 0."""
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def list_instances(text: str, instances: Sequence[Instance]) -> str:
    """List the numbers, words and scores of instances, such as "1 “red star” 0.93; 2 0.88"."""
    phrases = instance_phrases(text, [one.words for one in instances])
    items = [
        f"{number} \u201c{phrase}\u201d {one.score:.2f}" if phrase else f"{number} {one.score:.2f}"
        for number, (phrase, one) in enumerate(zip(phrases, instances, strict=True), start=1)
    ]
    more = [f"and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return "; ".join([*items[:MAX_LISTED], *more])


# Heat maps ------------------------------------------------------------------------------------------------------------


def heat_cell(
    image: np.ndarray,
    values: np.ndarray,
    title: str,
    *,
    marked: np.ndarray | None = None,
    span: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Draw a title, the image under a heat map of values (H, W), and the scale of the values from span[0] to span[1].

    Places without a finite value stay gray. `marked` (H, W) bool is outlined.
    """
    masks = np.zeros((1, *values.shape), bool) if marked is None else marked[None]
    shown, fitted = fit_for_display(image, masks, ONE_OF_FEW)
    if values.shape != shown.shape[:2]:  # resized bilinearly, which keeps NaN in place
        floats = Image.fromarray(np.asarray(values, np.float32))
        values = np.asarray(floats.resize(shown.shape[1::-1], Image.Resampling.BILINEAR))
    picture = heat_overlay(shown, values, span)
    if fitted.any():
        picture = overlay_masks(picture, fitted, colors=(WHITE,), alpha=0.0)
    # The scale: the colors from left to right, and the values at its ends
    width = max(MIN_WIDTH, picture.shape[1])
    scale = np.rint(heat_colors(np.linspace(*span, width)[None].repeat(10, 0), span)).astype(np.uint8)
    size, left = caption_size(width), width // 2
    ends = (
        caption(f"{span[0]:.3g}", left, size=size),
        caption(f"{span[1]:.3g}", width - left, size=size, right_aligned=True),
    )
    return stack([caption(title, width), picture, scale, np.concatenate(ends, axis=1)], width)


def heat_overlay(image: np.ndarray, values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Draw the image (H, W, 3) in gray under the colors of values (H, W)."""
    gray = np.asarray(Image.fromarray(as_rgb(image)).convert("L"), np.float32)[..., None].repeat(3, 2)
    opacity = np.interp(_share(values, span), (0, 1), HEAT_OPACITY)[..., None]
    finite = np.isfinite(values)[..., None]
    return np.rint(gray + finite * opacity * (heat_colors(values, span) - gray)).astype(np.uint8)


def heat_colors(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Color values (...) as (..., 3) float32. Values beyond the span get the color of its end."""
    stops, share = np.linspace(0, 1, len(HEAT)), _share(values, span)
    return np.stack([np.interp(share, stops, HEAT[:, channel]) for channel in range(3)], -1).astype(np.float32)


def _share(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Scale values to 0..1 over the span."""
    low, high = span
    return np.clip((np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12), 0, 1)
