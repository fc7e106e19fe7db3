"""Rows: all that scores need of one expression, a few numbers. Metrics keep rows, never masks.

A row is made on one view of masks (`refseg.evaluation.protocols.View`): a grid and a way to bring both masks there.
`Rows` are their columns, on which everything else is arithmetic of arrays. R rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """One expression. Pixels on the view's grid; `no_target_prob` NaN where the model has none.

    `object_id`: R-RefCOCO scores the expressions of one object together. `target_area`, `image_area`: pixels at the
    original size. `skill`: RefShapes' tag. `categories`: of the referents, sorted, joined by "|".
    `boxes_matched`, `boxes_predicted`, `boxes_target`: after the view's box rule; zeros where boxes are not scored.
    """

    expression_id: str
    image_id: str
    object_id: str
    intersection: int
    predicted: int
    target: int
    has_target: bool
    no_target_prob: float
    num_targets: int
    num_words: int
    target_area: int
    image_area: int
    skill: str = ""
    categories: str = ""
    boxes_matched: int = 0
    boxes_predicted: int = 0
    boxes_target: int = 0


class Rows:
    """Columns of rows, by the names of `Row`: int64, float64, bool or str arrays (R,)."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        rows = list(rows)
        kinds: dict[str, Any] = {"int": np.int64, "float": np.float64, "bool": bool, "str": object}
        return cls({f.name: np.array([getattr(row, f.name) for row in rows], kinds[str(f.type)]) for f in fields(Row)})

    def __len__(self) -> int:
        return len(self.columns["intersection"])

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["columns"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        """The rows of a mask or of indices."""
        return Rows({name: column[chosen] for name, column in self.columns.items()})

    @property
    def union(self) -> np.ndarray:
        return self.predicted + self.target - self.intersection

    @property
    def image(self) -> np.ndarray:
        """(R,) number of each row's image, for resampling images."""
        return np.unique(self.image_id.astype(str), return_inverse=True)[1] if len(self) else np.zeros(0, np.int64)

    @property
    def unit(self) -> np.ndarray:
        """(R,) number of each row's object within its image."""
        if not len(self):
            return np.zeros(0, np.int64)
        objects = np.unique(self.object_id.astype(str), return_inverse=True)[1]
        return np.unique(np.stack([self.image, objects]), axis=1, return_inverse=True)[1].reshape(-1)
