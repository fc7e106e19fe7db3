"""What counts as a phrase, as the side of an image, as a box, and as true or false."""

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


def as_flag(name: str, value: Any) -> bool:
    """True or False from a bool or from 0 and 1 of any numeric type; ValueError for anything else."""
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{name} is {value!r}: it must be true, false, 1 or 0")


def as_xywh(value: Any) -> tuple[float, float, float, float] | None:
    """COCO's `bbox`, or None without one; ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        raise ValueError(f"bbox is {value!r}, not [x, y, width, height]")
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))
