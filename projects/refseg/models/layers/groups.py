"""Grouping of expressions by image.

Queries of all expressions of an image form one long row of queries of that image. Attention and dot products then use
the image's keys, values, or mask features once, without a copy per expression.

Letters: B images, E expressions, K the most expressions of an image, T entries per expression, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refseg.structures import Batch

if TYPE_CHECKING:
    from typing_extensions import Self


class Groups:
    """Map between rows of expressions and rows of images.

    Args:
        counts: Number of expressions of each image. Expressions of an image are consecutive.
        device: Device of the tensors that will be grouped.
        by_image: False if feature rows are expressions already, one each.
    """

    def __init__(self, counts: Sequence[int], device: torch.device | str, *, by_image: bool = True) -> None:
        self.counts, self.by_image = tuple(counts), by_image
        self.max_count = max(self.counts, default=0)
        self.uniform = len(set(self.counts)) <= 1
        if not self.uniform:
            firsts = range(0, len(self.counts) * self.max_count, self.max_count)
            # One tensor per image, made on the device: copying a list would make a GPU synchronize
            slots = [
                torch.arange(first, first + count, device=device)
                for first, count in zip(firsts, self.counts, strict=True)
            ]
            self.slots = torch.cat(slots)  # (E,)

    @classmethod
    def of(cls, batch: Batch, *, shared: bool) -> Self:
        """Return the groups of a batch; `shared`: features have one row per image instead of one per expression."""
        counts = batch.expression_counts if shared else [1] * batch.num_expressions
        return cls(counts, batch.images.device, by_image=shared)

    @property
    def rows(self) -> list[int]:
        """The image row of each expression."""
        return [image for image, count in enumerate(self.counts) for _ in range(count)]

    def group(self, rows: Tensor) -> Tensor:
        """(E, T, ...) -> (B, K T, ...). Images with fewer expressions are padded with zeros."""
        if not self.uniform:
            empty = rows.new_zeros(len(self.counts) * self.max_count, *rows.shape[1:])
            rows = empty.index_copy(0, self.slots, rows)
        return rows.reshape(len(self.counts), self.max_count * rows.shape[1], *rows.shape[2:])

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(B, K T, ...) -> (E, T, ...): the inverse of `group`."""
        rows = grouped.reshape(len(self.counts) * self.max_count, -1, *grouped.shape[2:])
        return rows if self.uniform else rows.index_select(0, self.slots)

    def dot(self, vectors: Tensor, maps: Tensor) -> Tensor:
        """Return the products (E, T, ...) of vectors (E, T, C) of expressions and maps (B, C, ...) of images."""
        return self.ungroup(torch.bmm(self.group(vectors), maps.flatten(2))).unflatten(-1, maps.shape[2:])
