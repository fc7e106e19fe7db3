"""Attention with masks of what may be read, the feed-forward part, and the MLP of heads.

Letters: E rows, T queries, S things to read, C channels, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose keys and values are projected once per row of `memory` and then gathered.

    `memory_dim`: channels of what is read, where they are not `embed_dim`. Softmax is over what `valid` allows; a row
    that may read nothing reads zero.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, memory_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(memory_dim or embed_dim, 2 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        valid: Tensor | None = None,
        row_of: Tensor | None = None,
        *,
        x_position: Tensor | None = None,
        memory_position: Tensor | None = None,
    ) -> Tensor:
        """x (E, T, C), memory (E or B, S, C), valid (E, S) or (E, T, S): True where it may be read. Positions are added
        to what queries and keys are made of, and not to values."""
        query = self._heads(self.query(x if x_position is None else x + x_position))  # (E, heads, T, d)
        key, value = (self._heads(t) for t in self._key_value(memory, memory_position))  # (B, heads, S, d) each
        if row_of is not None:
            key, value = key.index_select(0, row_of), value.index_select(0, row_of)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(valid), dropout_p=dropout)
        return self.out(read.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, memory: Tensor, valid: Tensor | None = None) -> Tensor:
        """(E, heads, T, S): with which `forward` sums values up, if no positions are given; to look at."""
        query, key = self._heads(self.query(x)), self._heads(self._key_value(memory, None)[0])
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        mask = self._mask(valid)
        if mask is None:
            return scores.softmax(-1)
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _mask(valid: Tensor | None) -> Tensor | None:
        """(E, 1, T or 1, S)"""
        return valid if valid is None else valid[:, None] if valid.dim() == 3 else valid[:, None, None]

    def _key_value(self, memory: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        if position is None:
            key, value = self.key_value(memory).chunk(2, -1)
            return key, value
        (key_weight, value_weight), (key_bias, value_bias) = (
            self.key_value.weight.chunk(2),
            self.key_value.bias.chunk(2),
        )
        return F.linear(memory + position, key_weight, key_bias), F.linear(memory, value_weight, value_bias)


class AttentionLayer(nn.Module):
    """Reads `memory` (its own rows, for self-attention), then feed-forward with GELU; what is read, and what comes of
    it, is added and the sum normalised, as in BERT."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, memory_dim: int | None = None) -> None:
        super().__init__()
        self.read, self.norm_read = Attention(embed_dim, num_heads, memory_dim=memory_dim), nn.LayerNorm(embed_dim)
        self.ffn = feed_forward(embed_dim, ffn_dim, activation=nn.GELU)
        self.norm_ffn = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, memory: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (E, T, C), memory (E, S, C), valid as in `Attention`."""
        x = self.norm_read(x + self.read(x, memory, valid))
        return self.norm_ffn(x + self.ffn(x))


def feed_forward(embed_dim: int, ffn_dim: int, *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear, activation, linear."""
    return nn.Sequential(nn.Linear(embed_dim, ffn_dim), activation(), nn.Linear(ffn_dim, embed_dim))


def mlp(dims: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for number, (in_dim, out_dim) in enumerate(pairwise(dims)):
        layers += [nn.ReLU(inplace=True)] * (number > 0) + [nn.Linear(in_dim, out_dim)]
    return nn.Sequential(*layers)


def init_xavier(module: nn.Module) -> None:
    """Weights of linear layers so that they keep the size of what they read, as in Mask2Former's decoder; biases 0.
    PyTorch's own draw is a third of that, and a deep stack of it starts close to saying nothing."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def masked_mean(feats: Tensor, mask: Tensor) -> Tensor:
    """Mean of (E, S, C) over the places where mask (E, S) is True, (E, C); zero where it never is."""
    weight = mask[..., None].to(feats.dtype)
    return (feats * weight).sum(1) / weight.sum(1).clamp_min(1)
