"""Captions: fonts that have the letters of a text, line breaks, and marks."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from refseg.errors import UsageError
from refseg.visualization.captions import FONT_VARIABLE, caption, font_for, has_letters, load_font, wrap

MONO = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\u201cthe red circle\u2026\u201d, 5 %", "Aileron"),
        ("caf\u00e9", "DejaVu Sans"),
        ("\u043a\u0440\u0443\u0433", "DejaVu Sans"),
        ("\u0627\u0644\u062f\u0627\u0626\u0631\u0629", "DejaVu Sans"),
        ("a\u200b\u0301", "Aileron"),
    ],
)
def test_font_with_the_letters(text: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font = font_for(text, 20)
    assert font.getname()[0] == name and has_letters(font, text)


def test_warning_about_missing_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu Sans has no Chinese. The strip is drawn, and the warning names the remedy."""
    with pytest.warns(UserWarning, match=f"the font DejaVu Sans does not have.*{FONT_VARIABLE}"):
        assert caption("\u7ea2\u8272", 200).any()
    monkeypatch.setenv(FONT_VARIABLE, str(MONO))
    assert font_for("caf\u00e9", 20).getname()[0] == "DejaVu Sans Mono"
    monkeypatch.setenv(FONT_VARIABLE, __file__)
    with pytest.raises(UsageError, match=f"{FONT_VARIABLE}: .*test_captions.py cannot be used as a font"):
        caption("caf\u00e9", 200)


def test_letters_are_not_drawn_as_boxes() -> None:
    """Boxes would look the same."""
    assert not has_letters(load_font(20), "\u00e9")
    assert not np.array_equal(caption("\u0436", 200), caption("\u0449", 200))


def test_wrap_keeps_the_words() -> None:
    font = load_font(14)
    text = "the small green triangle to the left of the large yellow circle"
    lines = wrap(text, 120, font)
    assert " ".join(lines) == text and len(lines) > 2
    assert all(font.getlength(line) <= 120 for line in lines)


def test_wrap_breaks_long_words_and_cuts_long_text() -> None:
    font = load_font(14)
    lines = wrap("x" * 1000, 100, font, max_lines=3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert wrap("", 100, font) == [""]
    assert wrap("wide", 1, font) == list("wide")


def test_marks_differ_without_color() -> None:
    strips = [caption("IoU 0.50", 200, mark=mark).mean(2) < 128 for mark in (True, False)]
    assert strips[0].shape == strips[1].shape and (strips[0] != strips[1]).sum() > 20
