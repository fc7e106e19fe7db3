"""Text strips for pictures: wrapped phrases and marks, in Pillow's font if it has the letters."""

from __future__ import annotations

import os
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refseg.errors import UsageError

INK = (17, 17, 17)
GREEN_INK, RED_INK = (0, 110, 80), (178, 58, 0)
FONT_VARIABLE = "REFSEG_FONT"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Lines of the signs, in a square of side 1
_TICK = [[(0.1, 0.55), (0.38, 0.83), (0.9, 0.2)]]
_CROSS = [[(0.17, 0.2), (0.83, 0.86)], [(0.83, 0.2), (0.17, 0.86)]]


@lru_cache(maxsize=32)
def load_font(size: int) -> Font:
    """Load Pillow's font, which is the same on every machine and has the letters of English."""
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> Font:
    """Return Pillow's font, or one with more letters if the text needs it.

    Letters that neither has, such as Chinese, are drawn as boxes, with a warning. HTML pages show phrases as text, in
    any script.
    """
    font = load_font(size)
    if has_letters(font, text):
        return font
    font = load_larger_font(size, os.environ.get(FONT_VARIABLE))
    if not has_letters(font, text):
        warnings.warn(
            f"Pictures show boxes for letters that the font {font.getname()[0]} does not have. Set the environment "
            f"variable {FONT_VARIABLE} to the file of another font.",
            stacklevel=2,
        )
    return font


@lru_cache(maxsize=32)
def load_larger_font(size: int, file: str | None) -> ImageFont.FreeTypeFont:
    """Load the user's font, or matplotlib's DejaVu Sans (Latin, Greek, Cyrillic, Arabic, Hebrew and others)."""
    if file is None:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise UsageError(f"{FONT_VARIABLE}: {file} cannot be used as a font ({error})") from None


def has_letters(font: Font, text: str) -> bool:
    """Return whether the font has all visible letters of a text. A missing letter looks like one that no font has."""
    return not any(unicodedata.category(letter)[0] not in "CMZ" and _is_missing(font, letter) for letter in set(text))


@lru_cache(maxsize=4096)
def _is_missing(font: Font, letter: str) -> bool:
    shown, missing = font.getmask(letter), font.getmask("\uffff")
    return shown.size == missing.size and bytes(shown) == bytes(missing)


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
    """Draw the text, wrapped, into a white strip (height, width, 3).

    Args:
        text: The text. What goes past `max_lines` is replaced by an ellipsis.
        width: Width of the strip.
        size: Size of the font; by default it follows the width.
        mark: Draw a tick (True) or a cross (False), and add the word "right" or "wrong".
        quoted: Put the text in quotation marks.
        right_aligned: Align the lines to the right.
        max_lines: Most lines of text.
    """
    size = size or caption_size(width)
    font = font_for(text, size)
    text = f"\u201c{text}\u201d" if quoted else text
    if mark is not None:
        text = f"{text}, {'right' if mark else 'wrong'}"
    pad, line_height = size // 2, round(size * 1.3)
    indent = round(size * 1.3) if mark is not None else 0
    lines = wrap(text, width - 2 * pad - indent, font, max_lines=max_lines)
    strip = Image.new("RGB", (width, 2 * pad + line_height * len(lines)), "white")
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(lines):
        left = width - pad - font.getlength(line) if right_aligned else pad + indent
        draw.text((left, pad + index * line_height), line, font=font, fill=INK)
    if mark is not None:
        # A tick or a cross, which fonts may lack. It is drawn large and reduced, for smooth edges.
        big = 4 * size
        sign = Image.new("RGB", (big, big), "white")
        color, paths = (GREEN_INK, _TICK) if mark else (RED_INK, _CROSS)
        for path in paths:
            points = [(x * big, y * big) for x, y in path]
            ImageDraw.Draw(sign).line(points, fill=color, width=round(big * 0.17), joint="curve")
        strip.paste(sign.resize((size, size), Image.Resampling.LANCZOS), (pad, pad + round(size * 0.1)))
    return np.asarray(strip)


def caption_size(width: int) -> int:
    """Return the font's size for a strip of this width."""
    return max(13, min(24, width // 24))


def wrap(text: str, width: float, font: Font, *, max_lines: int = 6) -> list[str]:
    """Break text into lines of at most `width` pixels, at least one. A word too long for a line is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines = (lines if lines[-1] else lines[:-1]) + break_word(word, width, font)
        if len(lines) > max_lines:
            return [*lines[: max_lines - 1], shorten(lines[max_lines - 1], width, font)]
    return lines


def break_word(word: str, width: float, font: Font) -> list[str]:
    """Break a word into pieces that fit. A piece has at least one letter."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def shorten(text: str, width: float, font: Font) -> str:
    """Append an ellipsis, and drop as many letters before it as needed to fit."""
    while text and font.getlength(f"{text}\u2026") > width:
        text = text[:-1]
    return f"{text}\u2026"
