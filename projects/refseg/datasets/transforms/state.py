"""What transforms work on, and the few ways in which they change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from refseg.datasets.geometry import Size, move_points
from refseg.datasets.masks import draw_polygons
from refseg.errors import ConfigError
from refseg.records import Expression, Record


@dataclass(slots=True)
class TransformState:
    """A sample in the making: the record, the chosen expressions, and what the transforms have made so far.

    `image` (h, w, 3) RGB uint8. `matrix` (3, 3) takes places in the original image to places in `image` (conventions:
    `refseg.datasets.geometry`). `frames`: matrix and size of the images that were turned; what lay outside of one of
    them cannot be seen, though it may lie inside of the current image. `augmented_by`: the first transform whose
    results predictions cannot be mapped back from.
    """

    record: Record
    expressions: list[Expression]
    rng: np.random.Generator
    image: np.ndarray | None = None
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    frames: list[tuple[np.ndarray, Size]] = field(default_factory=list)
    augmented_by: str = ""
    token_ids: list[list[int]] | None = None
    word_of: list[list[int]] | None = None
    unknown_words: list[tuple[str, ...]] = field(default_factory=list)
    pad_id: int = 0
    num_truncated: int = 0

    @property
    def size(self) -> Size:
        """(height, width) of the current image."""
        if self.image is None:
            raise ConfigError("the pipeline needs LoadImage before transforms of the image")
        return self.image.shape[:2]

    @property
    def instances(self) -> list[int]:
        """Indices into the record of the instances that the chosen expressions refer to, ascending."""
        return sorted({index for expression in self.expressions for index in expression.referents})

    def move(self, image: np.ndarray, matrix: np.ndarray) -> None:
        """Puts a moved image in place; `matrix` is the step from the current image to it."""
        self.image = image
        self.matrix = matrix @ self.matrix

    def content(self, matrix: np.ndarray, size: Size) -> np.ndarray | None:
        """(h, w) uint8: where an image of `size`, one step `matrix` from here, shows some of the original; None if
        everywhere."""
        shown = None
        for frame, (height, width) in self.frames:
            corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
            inside = draw_polygons([move_points(matrix @ self.matrix @ np.linalg.inv(frame), corners)], size)
            shown = inside if shown is None else shown & inside
        return shown

    def mark_augmented(self, transform: object) -> None:
        """Geometric augmentation calls this whatever it draws, so that a wrong pipeline fails at its first sample."""
        self.augmented_by = self.augmented_by or type(transform).__name__

    def rewrite(self, expressions: list[Expression], transform: object) -> None:
        """Puts expressions with other texts in place."""
        if self.token_ids is not None:
            raise ConfigError(f"{type(transform).__name__} changes texts: put it before LoadText in the pipeline")
        self.expressions = expressions


def check_fraction(owner: object, name: str, value: float, *, at_most: float = 1) -> float:
    """A constructor argument that must lie in 0..1."""
    if not (_is_number(value) and 0 <= value <= at_most):
        raise _wrong(owner, name, f"lie between 0 and {at_most:g}", value)
    return float(value)


def check_tries(owner: object, tries: int) -> int:
    if not (_is_number(tries, Integral) and tries >= 1):
        raise _wrong(owner, "tries", "be at least 1", tries)
    return int(tries)


def check_size(owner: object, size: int | Sequence[int]) -> Size:
    """A constructor argument (height, width), or the side of a square."""
    sides: Any = (size, size) if _is_number(size, Integral) else size
    if not (_are_numbers(sides, 2, Integral) and min(sides) >= 1):
        raise _wrong(owner, "size", "be (height, width), or one number for both, of at least 1 pixel", size)
    return int(sides[0]), int(sides[1])


def check_range(
    owner: object, name: str, value: Sequence[float], *, above: float = -np.inf, at_most: float = np.inf
) -> tuple[float, float]:
    """A constructor argument (low, high)."""
    if not (_are_numbers(value, 2) and above < value[0] <= value[1] <= at_most and np.isfinite(value).all()):
        start = f"{above:g} < " if np.isfinite(above) else ""
        end = f" <= {at_most:g}" if np.isfinite(at_most) else ""
        raise _wrong(owner, name, f"be (low, high) with {start}low <= high{end}", value)
    return float(value[0]), float(value[1])


def check_turn(owner: object, name: str, value: Any) -> tuple[float, float]:
    """A constructor argument (low, high), or x for (-x, x)."""
    return check_range(owner, name, (-value, value) if _is_number(value) else value)


def check_colour(owner: object, name: str, value: Sequence[int]) -> tuple[int, int, int]:
    """A constructor argument (red, green, blue) in 0..255."""
    if not (_are_numbers(value, 3) and min(value) >= 0 and max(value) <= 255):
        raise _wrong(owner, name, "be (red, green, blue) in 0..255", value)
    return int(value[0]), int(value[1]), int(value[2])


def _is_number(value: Any, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _are_numbers(values: Any, count: int, kind: type = Real) -> bool:
    is_sequence = isinstance(values, Sequence | np.ndarray)
    return is_sequence and len(values) == count and all(_is_number(value, kind) for value in values)


def _wrong(owner: object, name: str, must: str, value: object) -> ConfigError:
    return ConfigError(f"{type(owner).__name__}.{name} must {must}, not {value!r}")
