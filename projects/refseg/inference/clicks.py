"""Clicks that correct masks: points on the object and beside it, and a box around it.

Letters: P points, H x W pixels of the image, (h, w) cells of a grid over the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refseg.datasets.geometry import Size
from refseg.errors import UsageError
from refseg.models.postprocess import LogitMask
from refseg.structures import SampleMeta

Point = tuple[float, float, bool]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Clicks:
    """Points and a box for one mask, in pixels of the image.

    Args:
        points: (x, y, positive). Positive points are on the object, the others are beside it.
        box: x0, y0, x1, y1, or None.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def then(self, later: Clicks) -> Clicks:
        """Return all points, and the later box if there is one."""
        return Clicks(self.points + later.points, later.box or self.box)

    def prompts(self, device: torch.device) -> dict[str, Tensor | None]:
        """Return the arguments `points` (1, P, 2), `labels` (1, P) and `boxes` (1, 4) of `PromptedMasks.decode`."""
        prompts: dict[str, Tensor | None] = {"points": None, "labels": None, "boxes": None}
        if self.points:
            prompts["points"] = torch.tensor([[point[:2] for point in self.points]], device=device)
            prompts["labels"] = torch.tensor([[int(positive) for _, _, positive in self.points]], device=device)
        if self.box is not None:
            prompts["boxes"] = torch.tensor([self.box], device=device)
        return prompts

    def to_dict(self) -> dict[str, Any]:
        """Return the clicks ready for JSON."""
        return {"points": [list(point) for point in self.points], "box": None if self.box is None else list(self.box)}


def check_clicks(points: Iterable[Sequence[float]], box: Sequence[float] | None, size: Size) -> Clicks:
    """Check the clicks on an image of `size` (height, width).

    Raises:
        UsageError: There are no clicks, or one is outside of the image or not a number.
    """
    height, width = size
    checked: list[Point] = []
    for number, point in enumerate(points):
        try:
            x, y, positive = point
            inside = 0 <= x < width and 0 <= y < height and positive in (0, 1)  # False for NaN
            checked.append((float(x), float(y), bool(positive)))
        except (TypeError, ValueError):
            inside = False
        if not inside:
            raise UsageError(
                f"Point {number} is {point!r}. Expected (x, y, positive) with x from 0 to {width - 1}, y from 0 to "
                f"{height - 1}, and positive True (on the object) or False (beside it)."
            )
    if box is None:
        if not checked:
            raise UsageError("No clicks. Pass points, a box, or both.")
        return Clicks(tuple(checked))
    try:
        x0, y0, x1, y1 = map(float, box)
        valid = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UsageError(
            f"The box is {box!r}. Expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}."
        )
    return Clicks(tuple(checked), (x0, y0, x1, y1))


@dataclass(frozen=True, eq=False)
class ClickedMask(LogitMask):
    """A mask that was corrected by clicks, and all the clicks that it has had."""

    clicks: Clicks = Clicks()


@dataclass(frozen=True, eq=False)
class MaskUnion:
    """The union of masks of one image, which may come from several models and grids."""

    parts: tuple[LogitMask, ...]

    @property
    def meta(self) -> SampleMeta:
        return self.parts[0].meta

    def at(self, size: Size) -> np.ndarray:
        """(H, W) bool: the mask of the image scaled to `size`."""
        return np.logical_or.reduce([part.at(size) for part in self.parts])

    @cached_property
    def full(self) -> np.ndarray:
        """(H, W) bool: the mask at the image's size."""
        return self.at(self.meta.original_size)

    @cached_property
    def small(self) -> np.ndarray:
        """The mask at the working size (`LogitMask.small`)."""
        return np.logical_or.reduce([part.small for part in self.parts])

    def logits_at(self, size: Size) -> Tensor:
        """(h, w): the highest of the logits, scaled to `size`. The threshold is at 0."""
        return torch.stack([part.logits_at(size) for part in self.parts]).amax(0)
