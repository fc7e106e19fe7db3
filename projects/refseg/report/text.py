"""The one way in which outside text enters HTML and SVG."""

from __future__ import annotations

import re
from html import escape
from typing import Any

# Control characters but tab and line ends, halves of surrogate pairs, and two that are no characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def markup_text(value: Any) -> str:
    """The value as text for elements and quoted attributes. Signs that no HTML or SVG file may hold become the
    replacement sign."""
    return escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True)
