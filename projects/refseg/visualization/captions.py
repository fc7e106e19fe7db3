"""Text strips for pictures: wrapped phrases and marks, drawn with the TrueType font inside Pillow."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = (17, 17, 17)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MARK_WORDS = {True: "right", False: "wrong"}


@lru_cache(maxsize=32)
def load_font(size: int) -> Font:
    """Pillow's own font: the same on every machine. It knows Latin letters; others show as boxes in pictures (the
    HTML report writes phrases as text, in any script)."""
    return ImageFont.load_default(size)


def caption(
    text: str,
    width: int,
    *,
    size: int | None = None,
    mark: bool | None = None,
    quoted: bool = False,
    right_aligned: bool = False,
    max_lines: int = 6,
) -> np.ndarray:
    """A white strip (height, width, 3) with the text wrapped into it.

    `size` is the font's, None scales it with the width. `mark` draws a tick (True) or a cross (False) and writes
    the word, so that neither colour nor the sign alone carries it. Text past `max_lines` ends in an ellipsis.
    """
    size = size or caption_size(width)
    font = load_font(size)
    text = f"\u201c{text}\u201d" if quoted else text
    if mark is not None:
        text = f"{text}, {_MARK_WORDS[mark]}"
    pad, line_height = size // 2, round(size * 1.3)
    indent = round(size * 1.3) if mark is not None else 0
    lines = wrap(text, width - 2 * pad - indent, font, max_lines=max_lines)
    strip = Image.new("RGB", (width, 2 * pad + line_height * len(lines)), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(lines):
        left = width - pad - font.getlength(line) if right_aligned else pad + indent
        draw.text((left, pad + index * line_height), line, font=font, fill=INK)
    if mark is not None:
        strip.paste(_mark(size, mark), (pad, pad + round(size * 0.1)))
    return np.asarray(strip)


def caption_size(width: int) -> int:
    """The font's size for a strip of this width."""
    return max(13, min(24, width // 24))


def wrap(text: str, width: float, font: Font, *, max_lines: int = 6) -> list[str]:
    """Lines of at most `width` pixels. A word too long for a line is broken; at least one line comes back."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        pieces = break_word(word, width, font)
        lines = (lines if lines[-1] else lines[:-1]) + pieces
        if len(lines) > max_lines:
            break
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last}…"]


def break_word(word: str, width: float, font: Font) -> list[str]:
    """The word in pieces that fit; a piece has at least one letter."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _mark(size: int, right: bool) -> Image.Image:
    """A tick or a cross of `size` pixels on white: drawn, because fonts need not have the signs."""
    big = 4 * size  # drawn large and reduced, for smooth edges
    picture = Image.new("RGB", (big, big), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    tick = [[(0.1, 0.55), (0.38, 0.83), (0.9, 0.2)]]
    cross = [[(0.17, 0.2), (0.83, 0.86)], [(0.83, 0.2), (0.17, 0.86)]]
    for line in tick if right else cross:
        points = [(x * big, y * big) for x, y in line]
        draw.line(points, fill=(0, 110, 80) if right else (178, 58, 0), width=round(big * 0.17), joint="curve")
    return picture.resize((size, size), Image.Resampling.LANCZOS)
