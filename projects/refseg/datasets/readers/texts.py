"""What counts as a phrase."""

from __future__ import annotations

from typing import Any


def is_text(value: Any) -> bool:
    """A string with something in it that can be written down: JSON may hold half a character ("\\ud800")."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
