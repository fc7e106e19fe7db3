"""LGFormer's linguistic prototype generator (section 3.2.2) and the learnable queries it is compared with (Table 2).

Letters: E expressions, N queries, L words, C channels, D channels of words, S_i pixels of a level.
"""

from __future__ import annotations

from typing import Literal

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import Attention, feed_forward, masked_mean, mlp
from refseg.models.lgformer.pixel_decoder import Decoded

Query = Literal["linguistic", "learnable"]


class PrototypeLayer(nn.Module):
    """A layer of the standard transformer decoder: self-attention of the queries, cross-attention to the pixels of one
    level ("V2LA"), feed-forward; each added and normalised. `reads_pixels` False leaves the second out (Table 4)."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, reads_pixels: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_pixels = Attention(embed_dim, num_heads) if reads_pixels else None
        self.norm2 = nn.LayerNorm(embed_dim) if reads_pixels else None
        self.ffn = feed_forward(embed_dim, ffn_dim)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, query: Tensor, pixels: Tensor, valid: Tensor | None, position: Tensor) -> Tensor:
        query = self.norm1(query + self.self_attn(query, query))
        if self.cross_attn_pixels is not None and self.norm2 is not None:
            query = self.norm2(query + self.cross_attn_pixels(query, pixels, valid, memory_position=position))
        return self.norm3(query + self.ffn(query))


class PrototypeGenerator(BaseModule):
    """Eq. 4: a query from the words, updated by the pixels of strides 32, 16, 8 in turn; a three-layer MLP makes it the
    prototype.

    Args:
        word_dim: D.
        num_layers: the paper's N, 6 (3 in Table 5).
        query: "linguistic", the mean of the words, or "learnable", the same for all inputs (eq. 3; Table 2).
        num_queries: of learnable ones, 1 or 10.
        v2la: whether queries read pixels (Table 4). Without it a layer is self-attention and feed-forward: what the
            ablation leaves of it, which the paper does not spell out.
    """

    def __init__(
        self,
        *,
        word_dim: int,
        embed_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        query: Query = "linguistic",
        num_queries: int = 1,
        v2la: bool = True,
    ) -> None:
        super().__init__()
        if query not in ("linguistic", "learnable"):
            raise ValueError(f"query is 'linguistic' or 'learnable', not {query!r}")
        if query == "linguistic" and num_queries != 1:
            raise ValueError(f"a linguistic query is one, not {num_queries}")
        self.num_queries = num_queries
        self.project_sentence = nn.Linear(word_dim, embed_dim) if query == "linguistic" else None
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim)) if query == "learnable" else None
        self.layers = nn.ModuleList(
            PrototypeLayer(embed_dim, num_heads, ffn_dim, reads_pixels=v2la) for _ in range(num_layers)
        )
        self.head = mlp((embed_dim, embed_dim, embed_dim, embed_dim))

    def forward(self, decoded: Decoded, word_feats: Tensor, word_mask: Tensor, *, padded: bool) -> Tensor:
        """word_feats (E, L, D), word_mask (E, L) -> prototypes (E, N, C)."""
        query = self._query(word_feats, word_mask)
        for number, layer in enumerate(self.layers):
            level = len(decoded.levels) - 1 - number % len(decoded.levels)  # from coarse to fine, and again
            valid = decoded.masks[level] if padded else None
            query = layer(query, decoded.levels[level], valid, decoded.positions[level])
        return self.head(query)

    def _query(self, word_feats: Tensor, word_mask: Tensor) -> Tensor:
        """(E, N, C)"""
        if self.project_sentence is not None:
            return self.project_sentence(masked_mean(word_feats, word_mask))[:, None]
        return self.queries.expand(len(word_feats), -1, -1)


class MaskMerge(nn.Module):
    """The masks of several learnable queries -> one, pixel by pixel, by a three-layer MLP (Table 2)."""

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = mlp((num_queries, hidden_dim, hidden_dim, 1))

    def forward(self, mask_logits: Tensor) -> Tensor:
        """(E, N, h, w) -> (E, 1, h, w)"""
        return self.mlp(mask_logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def dot_products(prototypes: Tensor, mask_feats: Tensor) -> Tensor:
    """(E, N, C) and (E, C, h, w) -> mask logits (E, N, h, w)."""
    return torch.bmm(prototypes, mask_feats.flatten(2)).unflatten(2, mask_feats.shape[-2:])
