"""One object that a model found: the type that models, metrics, prediction files, pictures and the API share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from refseg.datasets.geometry import Size, box_of_mask
from refseg.datasets.masks import decode, encode


class LazyMask(Protocol):
    """A mask that is made at the size it is asked for."""

    @property
    def full(self) -> np.ndarray:
        """(H, W) bool: the mask at the image's size."""

    def at(self, size: Size) -> np.ndarray:
        """(h, w) bool: the mask of the image scaled to `size`."""


@dataclass(frozen=True)
class Instance:
    """One of the objects that a phrase refers to, as a model predicts it.

    Args:
        source: Where the mask comes from: an (H, W) bool array, a compressed COCO RLE, or a `LazyMask`. It is decoded
            or restored when `mask` is first read.
        score: Relevance, 0 to 1.
        words: A weight for each word of `text.split()`; None from models without word attention.
        phrase: The content words with the greatest weights, where the model's weights were measured to point to the
            right words (`LoadedModel.aligned`); empty otherwise.
    """

    source: np.ndarray | dict | LazyMask
    score: float
    words: Sequence[float] | None = None
    phrase: str = ""

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the mask at the image's size."""
        if isinstance(self.source, np.ndarray):
            return self.source
        return decode(self.source) if isinstance(self.source, dict) else self.source.full

    def mask_at(self, size: Size) -> np.ndarray:
        """(h, w) bool: the mask of the image scaled to `size`. Only a lazy mask can be scaled."""
        if not isinstance(self.source, np.ndarray | dict):
            return self.source.at(size)
        if self.mask.shape != size:
            raise ValueError(f"the mask is {self.mask.shape}, not {size}, and has no logits to scale")
        return self.mask

    @cached_property
    def rle(self) -> dict:
        """`mask` as a compressed COCO RLE, without decoding one that is given."""
        return self.source if isinstance(self.source, dict) else encode(self.mask)

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around the mask, in pixels."""
        return box_of_mask(self.mask)

    @property
    def rounded_words(self) -> list[float] | None:
        """`words` as files have them: with 4 decimals."""
        return None if self.words is None else [round(weight, 4) for weight in self.words]
