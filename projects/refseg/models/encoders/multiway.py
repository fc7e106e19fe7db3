"""The multiway transformer of BEiT-3 (Wang et al. 2022, section 2.1).

Pixels and words share one attention but have their own norms, projections and feed-forward parts. Sub-LN (Wang et al.
2022, "Foundation Transformers", section 2.1) adds a norm inside each part, before its last projection.

Letters: E rows, P patches, L words, T = 1 + P + L tokens, C channels, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Streams(NamedTuple):
    """`pixels` (E, 1 + P, C): a class token, then patches line by line; `words` (E, L, C)."""

    pixels: Tensor
    words: Tensor


class Multiway(nn.Module):
    """A pair of equal modules: `vision` for pixels, `language` for words."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.vision, self.language = make(), make()

    def forward(self, streams: Streams) -> Streams:
        return Streams(self.vision(streams.pixels), self.language(streams.words))


class FeedForward(nn.Module):
    """Linear, GELU, norm, linear."""

    def __init__(self, embed_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.norm = nn.LayerNorm(ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x))))


class MultiwayLayer(nn.Module):
    """Self-attention of all tokens, then feed-forward; pre-norm.

    `drop_path` is the probability that a row skips an update, in both streams together.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.drop_prob = num_heads, drop_path
        self.norm1 = Multiway(lambda: nn.LayerNorm(embed_dim))
        self.query, self.key, self.value, self.out = (
            Multiway(lambda: nn.Linear(embed_dim, embed_dim)) for _ in range(4)
        )
        self.inner_norm = Multiway(lambda: nn.LayerNorm(embed_dim))
        self.norm2 = Multiway(lambda: nn.LayerNorm(embed_dim))
        self.ffn = Multiway(lambda: FeedForward(embed_dim, ffn_dim))

    def forward(
        self,
        streams: Streams,
        valid: Tensor,
        word_valid: Tensor | None = None,
        between: Callable[[Streams], Streams] | None = None,
    ) -> Streams:
        """Run the layer. `between` is called after the attention; the rest is as for `attend`."""
        streams = self.attend(streams, valid, word_valid)
        if between is not None:
            streams = between(streams)
        return self.feed_forward(streams)

    def attend(self, streams: Streams, valid: Tensor, word_valid: Tensor | None = None) -> Streams:
        """Self-attention of all tokens.

        Args:
            streams: Pixels and words.
            valid: (E, T), True on tokens that may be attended to.
            word_valid: (E, L, T), the same for each word, if words differ.
        """
        # Project each stream by its own modules, then concatenate them
        normed = self.norm1(streams)
        query, key, value = (self._heads(project(normed)) for project in (self.query, self.key, self.value))
        counts = [streams.pixels.shape[1], streams.words.shape[1]]
        valid = valid[:, None, None]  # (E, 1, 1, T)
        if word_valid is None:
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=valid)
            outputs = output.split(counts, 2)
        else:  # two calls, because one mask of (E, T, T) would be far larger
            queries = zip(query.split(counts, 2), (valid, word_valid[:, None]), strict=True)
            outputs = [F.scaled_dot_product_attention(query, key, value, attn_mask=mask) for query, mask in queries]
        # Output norm and projection, again per stream
        merged = Streams(*(output.transpose(1, 2).flatten(2) for output in outputs))
        return self._add(streams, self.out(self.inner_norm(merged)))

    def feed_forward(self, streams: Streams) -> Streams:
        """Feed-forward part of each stream."""
        return self._add(streams, self.ffn(self.norm2(streams)))

    def _heads(self, streams: Streams) -> Tensor:
        """Concatenate streams and split heads: (E, heads, T, d)."""
        return torch.cat(streams, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _add(self, streams: Streams, update: Streams) -> Streams:
        if self.drop_prob and self.training:
            from timm.layers import drop_path  # here, because it imports torch.compile

            keep = drop_path(update.pixels.new_ones(len(update.pixels), 1, 1), self.drop_prob, True)
            update = Streams(update.pixels * keep, update.words * keep)
        return Streams(streams.pixels + update.pixels, streams.words + update.words)


def init_multiway(layers: nn.ModuleList) -> None:
    """Initialize as Sub-LN's encoder ("Foundation Transformers", section 2.2): Xavier normal weights, zero biases.

    Layers that values pass through have a gain of sqrt(ln(2 N)), N the number of layers.
    """
    gain = math.sqrt(math.log(2 * len(layers)))
    for name, part in layers.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight, gain=1.0 if ".query." in name or ".key." in name else gain)
            nn.init.zeros_(part.bias)
