"""LGFormer's linguistic prototype generator (section 3.2.2), and the learnable queries of its ablation (Table 2).

Letters: E expressions, N queries, L words, C channels, D channels of words, S_i pixels of a level.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_at_least, check_choice
from refseg.models.layers import Attention, feed_forward, masked_mean, mlp
from refseg.models.lgformer.pixel_decoder import Decoded

Query = Literal["linguistic", "learnable"]


class PrototypeLayer(nn.Module):
    """Self-attention of queries, cross-attention to the pixels of one level ("V2LA"), feed-forward; post-norm.

    Without `reads_pixels` there is no cross-attention (Table 4).
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, reads_pixels: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_pixels = Attention(embed_dim, num_heads) if reads_pixels else None
        self.norm2 = nn.LayerNorm(embed_dim) if reads_pixels else None
        self.ffn = feed_forward(embed_dim, ffn_dim)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, query: Tensor, pixels: Tensor, valid: Tensor | None, position: Tensor) -> Tensor:
        """Update query (E, N, C) from pixels and their position (E, S_i, C); valid (E, S_i) is False on padding."""
        query = self.norm1(query + self.self_attn(query, query))
        if self.cross_attn_pixels is not None and self.norm2 is not None:
            query = self.norm2(query + self.cross_attn_pixels(query, pixels, valid, memory_position=position))
        return self.norm3(query + self.ffn(query))


class PrototypeGenerator(BaseModule):
    """Generate prototypes (eq. 4): a query from the words attends to pixels of strides 32, 16, 8 in turn; then an MLP.

    Args:
        word_dim: D.
        embed_dim: C.
        num_layers: The paper's N, 6 (3 in Table 5).
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks.
        query: "linguistic", the mean of the words, or "learnable", the same for all inputs (eq. 3; Table 2).
        num_queries: Number of learnable queries, 1 or 10 in the paper.
        v2la: Queries attend to pixels. Without it (Table 4), a layer is self-attention and feed-forward, which is our
            reading of the ablation.
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
        check_choice("prototype.query", query, get_args(Query))
        if query == "linguistic" and num_queries != 1:
            raise ConfigError(f"prototype.num_queries is {num_queries}, but query='linguistic' has exactly one.")
        check_at_least("prototype.num_queries", num_queries, 1)
        if embed_dim % num_heads:
            raise ConfigError(f"prototype.num_heads {num_heads} must divide embed_dim {embed_dim}. Change one of them.")
        self.num_queries = num_queries
        self.project_sentence = nn.Linear(word_dim, embed_dim) if query == "linguistic" else None
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim)) if query == "learnable" else None
        self.layers = nn.ModuleList(
            PrototypeLayer(embed_dim, num_heads, ffn_dim, reads_pixels=v2la) for _ in range(num_layers)
        )
        self.head = mlp((embed_dim, embed_dim, embed_dim, embed_dim))

    def forward(self, decoded: Decoded, word_feats: Tensor, word_mask: Tensor, *, padded: bool) -> Tensor:
        """Return prototypes (E, N, C) from decoded pixels, word_feats (E, L, D) and word_mask (E, L)."""
        # Initial queries
        if self.project_sentence is not None:
            query = self.project_sentence(masked_mean(word_feats, word_mask))[:, None]  # (E, 1, C)
        else:
            query = self.queries.expand(len(word_feats), -1, -1)  # (E, N, C)
        # Attend to the levels from coarse to fine, repeatedly
        for number, layer in enumerate(self.layers):
            level = len(decoded.levels) - 1 - number % len(decoded.levels)
            valid = decoded.masks[level] if padded else None
            query = layer(query, decoded.levels[level], valid, decoded.positions[level])
        return self.head(query)


class MaskMerge(nn.Module):
    """Merge the masks of several learnable queries by a three-layer MLP per pixel (Table 2)."""

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = mlp((num_queries, hidden_dim, hidden_dim, 1))

    def forward(self, mask_logits: Tensor) -> Tensor:
        """Mask logits (E, N, h, w) -> (E, 1, h, w)."""
        return self.mlp(mask_logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def dot_products(prototypes: Tensor, mask_feats: Tensor) -> Tensor:
    """Return mask logits (E, N, h, w), the products of prototypes (E, N, C) and mask_feats (E, C, h, w)."""
    return torch.bmm(prototypes, mask_feats.flatten(2)).unflatten(2, mask_feats.shape[-2:])
