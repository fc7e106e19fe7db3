"""The state that transforms work on, and checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from refseg.datasets.geometry import Size
from refseg.datasets.masks import instance_mask
from refseg.datasets.tokenizers import Tokenized
from refseg.errors import ConfigError
from refseg.records import Expression, Record


@dataclass(slots=True)
class TransformState:
    """A sample in the making: the record, the chosen expressions, and the results of the transforms so far.

    Args:
        record: The image's record. Transforms never change it.
        expressions: The sample's expressions. Transforms may replace them.
        rng: Source of all random numbers.
        image: (h, w, 3) RGB uint8.
        matrix: (3, 3) map from the original image to `image` (conventions: `refseg.datasets.geometry`).
        augmented_by: Name of the first transform that predictions cannot be mapped back through.
        tokens: Tokens of the expressions.
    """

    record: Record
    expressions: list[Expression]
    rng: np.random.Generator
    image: np.ndarray | None = None
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    augmented_by: str = ""
    tokens: Tokenized | None = None

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
        """Replace the image by a moved one; `matrix` maps the current image to it."""
        self.image = image
        self.matrix = matrix @ self.matrix

    def referent_masks(self, matrix: np.ndarray, size: Size) -> dict[int, np.ndarray]:
        """Return (h, w) uint8 masks of the referents, by index, after a further step `matrix` to an image of `size`."""
        record, total = self.record, matrix @ self.matrix
        return {index: instance_mask(record.instances[index], record.size, total, size) for index in self.instances}

    def mark_augmented(self, transform: object) -> None:
        """Note that `transform` augments geometry. It calls this even if it draws no change, so that evaluation
        pipelines that contain it fail at the first sample."""
        self.augmented_by = self.augmented_by or type(transform).__name__

    def rewrite(self, expressions: list[Expression], transform: object) -> None:
        """Replace the expressions by ones with other texts."""
        if self.tokens is not None:
            raise ConfigError(f"{type(transform).__name__} changes texts: put it before LoadText in the pipeline")
        self.expressions = expressions


def check_fraction(owner: object, name: str, value: float, *, at_most: float = 1) -> float:
    """Return a constructor argument as a float, or raise ConfigError if it is not in 0..`at_most`."""
    if not (is_number(value) and 0 <= value <= at_most):
        raise _wrong(owner, name, f"lie between 0 and {at_most:g}", value)
    return float(value)


def check_tries(owner: object, tries: int) -> int:
    """Return a number of tries, or raise ConfigError if it is not a whole number of at least 1."""
    if not (is_number(tries, Integral) and tries >= 1):
        raise _wrong(owner, "tries", "be at least 1", tries)
    return int(tries)


def check_size(owner: object, size: int | Sequence[int]) -> Size:
    """Return (height, width) from a constructor argument, which may be the side of a square."""
    sides: Any = (size, size) if is_number(size, Integral) else size
    if not (_are_numbers(sides, 2, Integral) and min(sides) >= 1):
        raise _wrong(owner, "size", "be (height, width), or one number for both, of at least 1 pixel", size)
    return int(sides[0]), int(sides[1])


def check_range(
    owner: object, name: str, value: Sequence[float], *, above: float = -np.inf, at_most: float = np.inf
) -> tuple[float, float]:
    """Return a constructor argument (low, high) with `above` < low <= high <= `at_most`."""
    if not (_are_numbers(value, 2) and above < value[0] <= value[1] <= at_most and np.isfinite(value).all()):
        start = f"{above:g} < " if np.isfinite(above) else ""
        end = f" <= {at_most:g}" if np.isfinite(at_most) else ""
        raise _wrong(owner, name, f"be (low, high) with {start}low <= high{end}", value)
    return float(value[0]), float(value[1])


def is_number(value: Any, kind: type = Real) -> bool:
    """Return whether a value is a number of this kind; True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _are_numbers(values: Any, count: int, kind: type = Real) -> bool:
    is_sequence = isinstance(values, Sequence | np.ndarray)
    return is_sequence and len(values) == count and all(is_number(value, kind) for value in values)


def _wrong(owner: object, name: str, must: str, value: object) -> ConfigError:
    return ConfigError(f"{type(owner).__name__}.{name} must {must}, not {value!r}")
