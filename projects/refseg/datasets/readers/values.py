"""What counts as a phrase, and as the side of an image."""

from __future__ import annotations

from typing import Any

MAX_SIDE = 100_000  # pixels; a mask of more would be a mistake or an attack


def is_text(value: Any) -> bool:
    """A string with something in it that can be written down: JSON may hold half a character ("\\ud800")."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_side(value: Any) -> bool:
    """A height or width that an image can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE
