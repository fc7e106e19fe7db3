"""What a decoder of object queries gives away, and the heads that read it.

Letters: E expressions, N queries, L words, C channels, D channels of mask features.
"""

from __future__ import annotations

from typing import NamedTuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers.attention import init_xavier, mlp


class DecodedQueries(NamedTuple):
    """After one block: `query_feats` (E, N, C), `word_feats` (E, L, C)."""

    query_feats: Tensor
    word_feats: Tensor


class QueryHeads(BaseModule):
    """Relevance, one logit per query, and the mask embedding whose dot products with pixels are the mask (InstAlign,
    section 11.3, eq. 9). The same heads read every block, after a norm of their own, as in Mask2Former."""

    def __init__(self, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.relevance = mlp((embed_dim, embed_dim, 1))
        self.mask = mlp((embed_dim, embed_dim, embed_dim, mask_dim))
        init_xavier(self)

    def forward(self, query_feats: Tensor) -> tuple[Tensor, Tensor]:
        """(E, N, C) -> relevance logits (E, N), mask embeddings (E, N, D)."""
        normed = self.norm(query_feats)
        return self.relevance(normed)[..., 0], self.mask(normed)

    def mask_embeddings(self, query_feats: Tensor) -> Tensor:
        """(E, N, C) -> (E, N, D)"""
        return self.mask(self.norm(query_feats))
