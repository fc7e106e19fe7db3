"""What transforms work on, and the few ways in which they change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


def check_fraction(owner: object, name: str, value: float) -> float:
    """A constructor argument that must lie in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{type(owner).__name__}.{name} must lie between 0 and 1, not {value}")
    return float(value)


def check_tries(owner: object, tries: int) -> int:
    if tries < 1:
        raise ValueError(f"{type(owner).__name__}.tries must be at least 1, not {tries}")
    return int(tries)


def check_size(owner: object, size: Sequence[int]) -> Size:
    """A constructor argument (height, width)."""
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(f"{type(owner).__name__}.size must be (height, width) of at least 1 pixel, not {size}")
    return height, width
