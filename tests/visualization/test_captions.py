"""Letters of pictures: which font has them, and what is said where none has."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from refseg.errors import UsageError
from refseg.visualization.captions import FONT_VARIABLE, caption, font_for, has_letters, load_font

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
def test_the_font_has_the_letters(text: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font = font_for(text, 20)
    assert font.getname()[0] == name and has_letters(font, text)


def test_warning_about_missing_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu Sans has no Chinese: the strip is drawn, and the warning names the remedy."""
    with pytest.warns(UserWarning, match=f"the font DejaVu Sans does not have.*{FONT_VARIABLE}"):
        assert caption("\u7ea2\u8272", 200).any()
    monkeypatch.setenv(FONT_VARIABLE, str(MONO))
    assert font_for("caf\u00e9", 20).getname()[0] == "DejaVu Sans Mono"
    monkeypatch.setenv(FONT_VARIABLE, __file__)
    with pytest.raises(UsageError, match=f"{FONT_VARIABLE}: .*test_captions.py cannot be used as a font"):
        caption("caf\u00e9", 200)


def test_two_letters_are_two() -> None:
    """As boxes they would be the same."""
    assert not has_letters(load_font(20), "\u00e9")
    assert not np.array_equal(caption("\u0436", 200), caption("\u0449", 200))
