"""Attention with masks, feed-forward networks, MLPs, and small helpers around them.

Letters: E rows, T queries, S memory entries, C channels, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention that projects keys and values once per row of `memory` and gathers them afterwards.

    A query whose mask allows nothing gets zero.

    Args:
        embed_dim: C.
        num_heads: Number of heads; it divides C.
        memory_dim: Channels of the memory, if they are not C.
        dropout: Dropout of the attention weights.
        bias: Whether queries, keys, and values have biases.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        memory_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.key_value = nn.Linear(memory_dim or embed_dim, 2 * embed_dim, bias=bias)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        attn_mask: Tensor | None = None,
        row_of: Tensor | None = None,
        *,
        x_position: Tensor | None = None,
        memory_position: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to memory.

        Args:
            x: (E, T, C).
            memory: (E, S, C), or (B, S, C) together with `row_of`.
            attn_mask: (E, S) or (E, T, S) bool, True where a query may attend.
            row_of: (E,), the row of `memory` that each row of x attends to.
            x_position, memory_position: Added to the inputs of queries and keys, not of values.
        """
        # Project and split into heads
        query = self._heads(self.query(x if x_position is None else x + x_position))  # (E, heads, T, d)
        key, value = (self._heads(t) for t in self._key_value(memory, memory_position))  # (B, heads, S, d) each
        if row_of is not None:
            key, value = key.index_select(0, row_of), value.index_select(0, row_of)
        # Attend and merge the heads
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(attn_mask), dropout_p=dropout)
        return self.out(x.transpose(1, 2).flatten(2))

    def weights(
        self, x: Tensor, memory: Tensor, attn_mask: Tensor | None = None, *, x_position: Tensor | None = None
    ) -> Tensor:
        """Return the attention weights of `forward`, (E, heads, T, S), in fp32 at least."""
        query = self._heads(self.query(x if x_position is None else x + x_position))
        key = self._heads(self._key_value(memory, None)[0])
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        return masked_softmax(scores, self._mask(attn_mask))

    def read(self, weights: Tensor, memory: Tensor) -> Tensor:
        """Return the output of `forward`, (E, T, C), for weights from `weights`."""
        value = self._heads(self._key_value(memory, None)[1])
        return self.out((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _mask(mask: Tensor | None) -> Tensor | None:
        """Add the dimensions of heads and queries: (E, 1, T or 1, S)."""
        return mask if mask is None else mask[:, None] if mask.dim() == 3 else mask[:, None, None]

    def _key_value(self, memory: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        if position is None:
            key, value = self.key_value(memory).chunk(2, -1)
            return key, value
        key_weight, value_weight = self.key_value.weight.chunk(2)
        bias = self.key_value.bias
        key_bias, value_bias = (None, None) if bias is None else bias.chunk(2)
        return F.linear(memory + position, key_weight, key_bias), F.linear(memory, value_weight, value_bias)


class AttentionLayer(nn.Module):
    """Attention to `memory` (or to x itself), then a feed-forward network with GELU; post-norm, as in BERT."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, memory_dim: int | None = None) -> None:
        super().__init__()
        self.attn, self.norm1 = Attention(embed_dim, num_heads, memory_dim=memory_dim), nn.LayerNorm(embed_dim)
        self.ffn = feed_forward(embed_dim, ffn_dim, activation=nn.GELU)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, memory: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """x (E, T, C), memory (E, S, C), attn_mask as in `Attention`."""
        x = self.norm1(x + self.attn(x, memory, attn_mask))
        return self.norm2(x + self.ffn(x))


def feed_forward(embed_dim: int, ffn_dim: int, *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear, activation, linear."""
    return nn.Sequential(nn.Linear(embed_dim, ffn_dim), activation(), nn.Linear(ffn_dim, embed_dim))


def mlp(dims: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them."""
    layers: list[nn.Module] = []
    for number, (in_dim, out_dim) in enumerate(pairwise(dims)):
        layers += [nn.ReLU(inplace=True)] * (number > 0) + [nn.Linear(in_dim, out_dim)]
    return nn.Sequential(*layers)


def init_mask2former(module: nn.Module) -> None:
    """Initialize the blocks of a decoder as Mask2Former does: Xavier weights, and zero biases in attention.

    As in `nn.MultiheadAttention`, query, key and value count as one matrix, which makes their weights smaller.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    for part in module.modules():
        if isinstance(part, Attention):
            dim = part.query.out_features
            for linear in (part.query, part.key_value):
                bound = (6 / (3 * dim + linear.in_features)) ** 0.5
                nn.init.uniform_(linear.weight, -bound, bound)
            for linear in (part.query, part.key_value, part.out):
                nn.init.zeros_(linear.bias)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension where the mask is True, in fp32 at least; zero in rows without any True."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if mask is None:
        return scores.softmax(-1)
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def masked_mean(feats: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of feats (E, S, C) where mask (E, S) is True: (E, C). A row without True gives zero."""
    weight = mask[..., None].to(feats.dtype)
    return (feats * weight).sum(1) / weight.sum(1).clamp_min(1)
