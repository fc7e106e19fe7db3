"""Words of instances, and captions with bars and numbers in the instances' colors under these words.

The text stays dark on white, because some of the colors are too light to be read as text. Instances are counted from 0
in code and from 1 wherever a person reads a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

from refseg.datasets.tokenizers import is_content_word
from refseg.visualization.captions import INK, Font, break_word, caption_size, font_for, load_font, shorten
from refseg.visualization.overlay import PALETTE, Color

# The palette, with the colors of predictions and ground truths last
INSTANCE_COLORS: tuple[Color, ...] = PALETTE[2:] + PALETTE[:2]

TOP_SHARE = 0.5  # a word belongs to an instance if its weight is at least this share of the greatest one

Owners = tuple[int, ...]  # the instances that a word belongs to
Weights = Sequence[Sequence[float] | None]  # of each instance: a weight for each word of `text.split()`

_EDGE: Color = (110, 110, 110)  # around a bar: yellow on white needs it


def words_by_instance(text: str, weights: Weights) -> list[list[int]]:
    """Return the words of each instance: the content words with at least half of its greatest weight.

    The top word always belongs to the instance. If all weights are equal, all content words do. Weights that are not
    finite count as 0, and an instance without a positive weight has no words.
    """
    is_content = [is_content_word(word) for word in text.split()]
    words = []
    for of_instance in weights:
        usable = [
            weight if content and math.isfinite(weight) else 0.0
            for weight, content in zip(of_instance or (), is_content, strict=False)
        ]
        top = max(usable, default=0.0)
        words.append([index for index, weight in enumerate(usable) if top > 0 and weight >= TOP_SHARE * top])
    return words


def instance_phrases(text: str, weights: Weights) -> list[str]:
    """Return the words of each instance as a phrase, such as "red star"."""
    words = text.split()
    return [" ".join(words[word] for word in of_instance) for of_instance in words_by_instance(text, weights)]


def word_owners(text: str, weights: Weights) -> list[Owners]:
    """Return the instances that each word of `text.split()` belongs to."""
    words = words_by_instance(text, weights)
    return [
        tuple(instance for instance, of_instance in enumerate(words) if word in of_instance)
        for word in range(len(text.split()))
    ]


def numbers(instances: Sequence[int]) -> str:
    """Write ascending instances for people, from 1: (0, 1, 2, 4) is "1-3, 5"."""
    parts = []
    for _, pairs in groupby(enumerate(instances), key=lambda pair: pair[1] - pair[0]):
        block = [instance + 1 for _, instance in pairs]
        parts += [f"{block[0]}-{block[-1]}"] if len(block) > 2 else [str(number) for number in block]
    return ", ".join(parts)


def bars(owners: Owners) -> list[int]:
    """Return the color of each bar under a word. There is one bar per color, even if several instances share it."""
    return list(dict.fromkeys(instance % len(INSTANCE_COLORS) for instance in owners))


def caption_with_bars(text: str, owners: Sequence[Owners], width: int, *, max_lines: int = 6) -> np.ndarray:
    """Draw the quoted text with bars into a white strip (height, width, 3).

    Neighboring words of the same instances share their bars. Numbers stand below the start of the bars, on each line
    again. Text past `max_lines` ends in an ellipsis.

    Args:
        text: The phrase.
        owners: The instances of each word of `text.split()`.
        width: Width of the strip, into which the text is wrapped.
        max_lines: Most lines of text.
    """
    size = caption_size(width)
    fonts = font_for(text, size), load_font(max(11, round(size * 0.72)))
    pad, text_height, label_height, bar = size // 2, round(size * 1.3), round(size * 0.95), max(3, round(size / 6))
    words = f"\u201c{' '.join(text.split())}\u201d".split()
    lines = _flow(words, owners or [()], width - 2 * pad, fonts, max_lines)
    num_bars = [max((len(bars(piece.owners)) for piece in line), default=0) for line in lines]
    heights = [text_height + (count * (bar + 1) + label_height if count else 0) for count in num_bars]
    strip = Image.new("RGB", (width, 2 * pad + sum(heights)), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    top = pad
    for line, height in zip(lines, heights, strict=True):
        for piece in line:
            draw.text((pad + piece.left, top), piece.text, font=fonts[0], fill=INK)
        for owned, run in groupby(line, key=lambda piece: piece.owners):
            pieces = list(run)
            left, right = pad + round(pieces[0].left), pad + round(pieces[-1].right) - 1
            below = top + text_height
            for color in bars(owned):
                box = (left, below, max(left, right), below + bar)
                draw.rectangle(box, fill=INSTANCE_COLORS[color], outline=_EDGE)
                below += bar + 1
            draw.text((left, below + 1), numbers(owned), font=fonts[1], fill=INK)
        top += height
    return np.asarray(strip)


@dataclass(frozen=True)
class _Piece:
    """A word, or a part of one, on its line. `left` and `right` are those of its text, in pixels."""

    text: str
    owners: Owners
    left: float
    right: float


def _flow(
    words: Sequence[str], owners: Sequence[Owners], width: float, fonts: tuple[Font, Font], max_lines: int
) -> list[list[_Piece]]:
    """Break the words into lines of at most `width` pixels. Numbers that are wider than their words push the next."""
    font, small = fonts
    space = font.getlength(" ")
    lines: list[list[_Piece]] = [[]]
    end = label_end = 0.0
    for word, owned in zip(words, owners, strict=True):
        for text in break_word(word, width, font):
            begins = not lines[-1] or lines[-1][-1].owners != owned
            left = end + space if lines[-1] else 0.0
            left = max(left, label_end + space) if owned and begins else left
            length = font.getlength(text)
            if lines[-1] and left + length > width:
                lines.append([])
                left, label_end, begins = 0.0, 0.0, True
            lines[-1].append(_Piece(text, owned, left, left + length))
            end = left + length
            label_end = left + small.getlength(numbers(owned)) if owned and begins else label_end
    if len(lines) <= max_lines:
        return lines
    *before, last = lines[max_lines - 1]
    cut = shorten(last.text, width - last.left, font)
    return [*lines[: max_lines - 1], [*before, _Piece(cut, last.owners, last.left, last.left + font.getlength(cut))]]
