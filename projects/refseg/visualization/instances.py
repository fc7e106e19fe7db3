"""Pictures of instances: each outlined in a color, with its number beside it or on it.

Letters: N instances, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from refseg.instance import Instance
from refseg.visualization.captions import INK, caption, load_font
from refseg.visualization.overlay import (
    EMPTY_MASK,
    PREDICTION_COLOR,
    THUMBNAIL,
    Color,
    Display,
    distance_inside,
    fit_for_display,
    mask_panel,
    outline_width,
    overlay_masks,
    spotlight,
)
from refseg.visualization.word_bars import INSTANCE_COLORS, caption_with_bars, word_owners

_ROOMY = 6  # a mask of at least this many times its number's area carries the number on it


def phrase_strip(text: str, instances: Sequence[Instance], width: int) -> np.ndarray:
    """Draw the quoted phrase (h, width, 3), with bars under the words that belong to instances."""
    owners = word_owners(text, [one.words for one in instances])
    return caption_with_bars(text, owners, width) if any(owners) else caption(text, width, quoted=True)


def answer_panel(
    image: np.ndarray,
    merged: np.ndarray,
    instances: Sequence[Instance],
    *,
    rejected: bool = False,
    display: Display = THUMBNAIL,
) -> np.ndarray:
    """Draw a model's answer: its instances if it has any, else its mask, else "nothing here" or "empty mask"."""
    if instances and merged.any() and not rejected:
        return instances_panel(image, merged, np.stack([one.mask for one in instances]), display=display)
    return mask_panel(image, merged, color=PREDICTION_COLOR, rejected=rejected, empty=EMPTY_MASK, display=display)


def instances_panel(
    image: np.ndarray, merged: np.ndarray, masks: np.ndarray, *, display: Display = THUMBNAIL
) -> np.ndarray:
    """Draw the merged mask (H, W) lit, and the instances' masks (N, H, W) outlined and numbered, the best on top.

    The lit area is the answer that counts. A thin line in the prediction's color runs around it, below the instances'
    outlines, so it only shows where the two differ.
    """
    shown, fitted = fit_for_display(image, np.concatenate([merged[None], masks]), display)
    lit, masks = fitted[:1], fitted[1:]
    width = outline_width(*shown.shape[:2])
    picture = overlay_masks(spotlight(shown, lit[0]), lit, colors=(PREDICTION_COLOR,), alpha=0.0, outline=width / 2)
    colors = [INSTANCE_COLORS[index % len(INSTANCE_COLORS)] for index in range(len(masks))]
    picture = overlay_masks(picture, masks[::-1], colors=colors[::-1], alpha=0.0)
    canvas = Image.fromarray(picture)
    size = max(14, min(28, min(shown.shape[:2]) // 16))
    chips = [number_chip(str(index + 1), size, color) for index, color in enumerate(colors)]
    for chip, (left, top) in zip(chips, chip_places(masks, [chip.size for chip in chips]), strict=True):
        canvas.paste(chip, (left, top), chip)
    return np.asarray(canvas)


@lru_cache(maxsize=256)
def number_chip(text: str, size: int, color: Color) -> Image.Image:
    """Draw a number in dark ink on a white pill with a ring of the color and a dark rim. `size` is the font's."""
    scale = 4  # drawn large and reduced, for smooth edges
    font = load_font(scale * size)
    height = round(size * 1.4)
    width = max(height, round(font.getlength(text) / scale + size * 0.8))
    ring = max(2, round(size / 7))
    big = Image.new("RGBA", (scale * width, scale * height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(big)
    for inset, fill in ((0, (0, 0, 0)), (1, color), (1 + ring, (255, 255, 255))):
        corners = (scale * inset, scale * inset, scale * (width - inset) - 1, scale * (height - inset) - 1)
        draw.rounded_rectangle(corners, radius=scale * (height / 2 - inset), fill=fill)
    draw.text((scale * width / 2, scale * height / 2), text, font=font, anchor="mm", fill=INK, stroke_width=1)
    return big.resize((width, height), Image.Resampling.LANCZOS)


def chip_places(masks: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Place numbers of sizes (width, height) on or beside masks (N, H, W), and return the left and top of each.

    A large mask carries its number, a small one has it at its side. The best place covers the fewest pixels of earlier
    numbers, then is closest to the mask, then covers the fewest pixels of masks. The number of an empty mask is in a
    corner.
    """
    anything = np.logical_or.reduce(masks)
    numbered = np.zeros_like(anything)
    places = []
    for mask, (width, height) in zip(masks, sizes, strict=True):
        candidates = [(ring, place, anything) for ring, place in _around(mask, width, height)]
        if mask.sum() >= _ROOMY * width * height:
            # On the mask: around its innermost pixel, or the middle one of several
            depth = distance_inside(np.pad(mask, 1))[1:-1, 1:-1]
            y, x = np.nonzero(depth >= depth.max() - 0.5)
            middle = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
            place = int(x[middle]) - width // 2, int(y[middle]) - height // 2
            candidates.insert(0, (0, place, anything & ~mask))
        # The cheapest of the candidates, each moved into the image if it fits
        costs = []
        for ring, place, obstacles in candidates:
            left = min(max(0, place[0]), max(0, mask.shape[1] - width))
            top = min(max(0, place[1]), max(0, mask.shape[0] - height))
            box = np.s_[top : top + height, left : left + width]
            costs.append((int(numbered[box].sum()), ring, int(obstacles[box].sum()), left, top))
        *_, left, top = min(costs, key=lambda cost: cost[:3])
        numbered[top : top + height, left : left + width] = True
        places.append((left, top))
    return places


def _around(mask: np.ndarray, width: int, height: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the ring, left and top of boxes outside the mask, where it reaches farthest in eight directions.

    Boxes of ring 0 touch the mask, and those of ring 1 touch the boxes of ring 0.
    """
    y, x = np.nonzero(mask)
    if not len(y):
        return [(0, (0, 0))]
    boxes = []
    for right, down in ((1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (1, 0), (-1, 0), (0, 1)):
        reach = right * x + down * y
        farthest = np.flatnonzero(reach == reach.max())
        at = farthest[len(farthest) // 2]
        step = 0.35 if right and down else 0.5  # to the box's middle, in widths and heights: an even gap all around
        for ring in (0, 1):
            left = float(x[at]) + ((ring + step) * right - 0.5) * width
            top = float(y[at]) + ((ring + step) * down - 0.5) * height
            boxes.append((ring, (round(left), round(top))))
    return boxes
