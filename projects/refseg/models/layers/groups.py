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
        counts: Number of expressions of each image. Expressions of an image are consecutive. A single number E: feature
            rows are E expressions already. Exporters give symbols, which are compared only where they must be.
        device: Device of the tensors that will be grouped.
    """

    _counts: tuple[int, ...] | None

    def __init__(self, counts: Sequence[int] | int, device: torch.device | str) -> None:
        self.by_image = isinstance(counts, Sequence)
        if isinstance(counts, Sequence):
            self._counts, self.num_rows, self.max_count = tuple(counts), len(counts), max(counts, default=0)
            self.uniform = len(counts) <= 1 or len(set(counts)) == 1
        else:
            self._counts, self.num_rows, self.max_count, self.uniform = None, counts, 1, True
        if not self.uniform:
            firsts = range(0, self.num_rows * self.max_count, self.max_count)
            # One tensor per image, made on the device: copying a list would make a GPU synchronize
            slots = [
                torch.arange(first, first + count, device=device)
                for first, count in zip(firsts, self.counts, strict=True)
            ]
            self.slots = torch.cat(slots)  # (E,)

    @classmethod
    def of(cls, batch: Batch, *, shared: bool) -> Self:
        """Return the groups of a batch; `shared`: features have one row per image instead of one per expression."""
        return cls(batch.expression_counts if shared else batch.num_expressions, batch.images.device)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of expressions of each row."""
        return (1,) * self.num_rows if self._counts is None else self._counts

    @property
    def num_expressions(self) -> int:
        """E."""
        return self.num_rows if self._counts is None else sum(self._counts)

    @property
    def rows(self) -> list[int]:
        """The image row of each expression."""
        return [image for image, count in enumerate(self.counts) for _ in range(count)]

    def group(self, rows: Tensor) -> Tensor:
        """(E, T, ...) -> (B, K T, ...). Images with fewer expressions are padded with zeros."""
        if not self.uniform:
            empty = rows.new_zeros(self.num_rows * self.max_count, *rows.shape[1:])
            rows = empty.index_copy(0, self.slots, rows)
        return rows.reshape(self.num_rows, self.max_count * rows.shape[1], *rows.shape[2:])

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(B, K T, ...) -> (E, T, ...): the inverse of `group`."""
        rows = grouped.reshape(self.num_rows * self.max_count, -1, *grouped.shape[2:])
        return rows if self.uniform else rows.index_select(0, self.slots)

    def dot(self, vectors: Tensor, maps: Tensor) -> Tensor:
        """Return the products (E, T, ...) of vectors (E, T, C) of expressions and maps (B, C, ...) of images."""
        return self.ungroup(torch.bmm(self.group(vectors), maps.flatten(2))).unflatten(-1, maps.shape[2:])
