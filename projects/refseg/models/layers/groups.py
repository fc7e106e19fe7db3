"""Expressions by image: several expressions' queries as one long row of queries of their image.

What reads an image for K expressions then reads its keys, values or mask features where they are, once, and nothing of
the image is copied per expression.

Letters: B images, E expressions, K the most expressions of an image, T rows of an expression, C channels.
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
    """`counts`: the number of expressions of each image; expressions of an image follow each other. `by_image` False:
    rows are expressions already, one each."""

    def __init__(self, counts: Sequence[int], device: torch.device | str, *, by_image: bool = True) -> None:
        self.counts, self.by_image = tuple(counts), by_image
        self.most = max(self.counts, default=0)
        self.uniform = len(set(self.counts)) <= 1
        if not self.uniform:
            slots = [image * self.most + k for image, count in enumerate(self.counts) for k in range(count)]
            self.slots = torch.tensor(slots, device=device)

    @classmethod
    def of(cls, batch: Batch, *, shared: bool) -> Self:
        """`shared`: features have a row per image; otherwise each expression has its own."""
        counts = batch.expression_counts if shared else [1] * batch.num_expressions
        return cls(counts, batch.images.device, by_image=shared)

    @property
    def rows(self) -> list[int]:
        """Per expression the row of its image."""
        return [image for image, count in enumerate(self.counts) for _ in range(count)]

    def group(self, rows: Tensor) -> Tensor:
        """(E, T, ...) -> (B, K T, ...); images with fewer expressions end in zeros."""
        if not self.uniform:
            empty = rows.new_zeros(len(self.counts) * self.most, *rows.shape[1:])
            rows = empty.index_copy(0, self.slots, rows)
        return rows.reshape(len(self.counts), self.most * rows.shape[1], *rows.shape[2:])

    def ungroup(self, grouped: Tensor) -> Tensor:
        """The inverse of `group`: (B, K T, ...) -> (E, T, ...)."""
        rows = grouped.reshape(len(self.counts) * self.most, -1, *grouped.shape[2:])
        return rows if self.uniform else rows.index_select(0, self.slots)

    def dot(self, vectors: Tensor, maps: Tensor) -> Tensor:
        """Vectors (E, T, C) of expressions and maps (B, C, ...) of images -> their products (E, T, ...)."""
        return self.ungroup(torch.bmm(self.group(vectors), maps.flatten(2))).unflatten(-1, maps.shape[2:])
