"""Rows: the few numbers that scores need of one expression. Metrics keep rows, never masks.

A row is measured on one view (`refseg.evaluation.protocols.View`): a grid, and a way to bring both masks there. `Rows`
holds columns of rows, and all further evaluation is array arithmetic. Letters: R rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """Numbers of one expression.

    Args:
        object_id: Object that the expression belongs to. R-RefCOCO scores the expressions of one object together.
        intersection: Pixels on the view's grid, like `predicted` and `target`.
        no_target_prob: NaN if the model has none.
        target_area: Pixels at the original size, like `image_area`.
        skill: RefShapes' tag.
        categories: Categories of the referents, sorted and joined by "|".
        boxes_matched: Number of boxes under the view's box rule, like `boxes_predicted` and `boxes_target`. 0 if boxes
            are not scored.
        box_iou: Largest IoU of one of these predicted boxes and a target box.
        matched: Number of instances that match a target, for each IoU of the view's instance rule, like
            `predicted_objects` and `objects`, the numbers of predicted and target instances. Empty and 0 if instances
            are not scored.
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
    box_iou: float = 0.0
    matched: tuple[int, ...] = ()
    predicted_objects: int = 0
    objects: int = 0


class Rows:
    """Columns by the names of `Row`: int64, float64, bool or str arrays (R,), and `matched`, int64 (R, T)."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        rows = list(rows)
        kinds: dict[str, Any] = {"int": np.int64, "float": np.float64, "bool": bool, "str": object}
        columns = {
            f.name: np.array([getattr(row, f.name) for row in rows], kinds.get(str(f.type), np.int64))
            for f in fields(Row)
        }
        return cls(columns | {"matched": columns["matched"].reshape(len(rows), -1 if rows else 0)})

    def __len__(self) -> int:
        return len(self.columns["intersection"])

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["columns"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        """Select rows by a mask or by indices."""
        return Rows({name: column[chosen] for name, column in self.columns.items()})

    @property
    def union(self) -> np.ndarray:
        return self.predicted + self.target - self.intersection

    @property
    def image(self) -> np.ndarray:
        """(R,) int code of each row's image, for resampling images."""
        return np.unique(self.image_id.astype(str), return_inverse=True)[1]

    @property
    def unit(self) -> np.ndarray:
        """(R,) int code of each row's object within its image."""
        objects = np.unique(self.object_id.astype(str), return_inverse=True)[1]
        return np.unique(self.image * (len(self) + 1) + objects, return_inverse=True)[1]
