"""DMMI's decoders: text to image for the mask, image to text for the erased entity, and their contrast.

Letters: E expressions, T queries, S memory entries, P = h * w pixels of a level, L words, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_at_least, check_share
from refseg.models.encoders.vision import flatten_map, unflatten_map
from refseg.models.layers import Attention, JoinLevels, masked_mean
from refseg.structures import EncodedFeatures


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to `memory`, and a feed-forward network with ReLU; post-norm.

    Args:
        embed_dim: C.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward network.
        dropout: Dropout of attention weights, of the feed-forward network, and of each update.
    """

    def __init__(self, embed_dim: int, *, num_heads: int = 8, ffn_dim: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        check_share("layer.dropout", dropout)
        if embed_dim % num_heads:
            raise ConfigError(f"layer.num_heads {num_heads} must divide the {embed_dim} channels of words.")
        self.self_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.cross_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.ffn = nn.Sequential(
            nn.Linear(embed_dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_dim, embed_dim)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, memory: Tensor, *, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """x (E, T, C), memory (E, S, C), and their masks (E, T) and (E, S), True where attention is allowed."""
        x = self.norm1(x + self.dropout(self.self_attn(x, x, mask)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, memory, memory_mask)))
        return self.norm3(x + self.dropout(self.ffn(x)))


class Decoded(NamedTuple):
    """Output of the text-to-image decoder.

    Args:
        scores: (E, 2, h, w), background and referent.
        means: Mean (E, C) over the pixels of each joined level.
        pixels: (E, C, h', w'), the joined level before the finest one.
        pixel_mask: (E, P'), its pixels on the image; None without padding.
    """

    scores: Tensor
    means: list[Tensor]
    pixels: Tensor
    pixel_mask: Tensor | None


class TextToImageDecoder(BaseModule):
    """Join levels from coarse to fine; between two joins, pixels attend to each other and to the words.

    Args:
        level_dims: Channels of the levels, fine to coarse.
        layer: Arguments of each `DecoderLayer`. Its `embed_dim` is that of words.
    """

    def __init__(self, level_dims: Sequence[int], layer: dict) -> None:
        super().__init__()
        embed_dim = layer["embed_dim"]
        check_at_least("number of encoder.out_stages", len(level_dims), 3)
        coarse_dims = [level_dims[-1]] + [embed_dim] * (len(level_dims) - 2)
        self.joins = nn.ModuleList(
            JoinLevels(coarse, fine, embed_dim, align_corners=True)
            for coarse, fine in zip(coarse_dims, reversed(level_dims[:-1]), strict=True)
        )
        self.layers = nn.ModuleList(DecoderLayer(**layer) for _ in self.joins[1:])
        self.classify = nn.Conv2d(embed_dim, 2, 1)

    def forward(self, features: EncodedFeatures, words: Tensor, *, padded: bool) -> Decoded:
        """Levels of E expressions and words (E, L, C), of which none is masked."""
        x = features.levels[-1]
        means, joined = [], []
        for number, join in enumerate(self.joins, 2):
            # Join the finer level
            x = join(x, features.levels[-number])  # (E, C, h, w)
            pixels, size = flatten_map(x)
            mask = features.masks[-number].flatten(1) if padded else None
            means.append(pixels.mean(1) if mask is None else masked_mean(pixels, mask))
            joined.append((x, mask))
            # Pixels to pixels, then to words
            if number < len(features.levels):
                x = unflatten_map(self.layers[number - 2](pixels, words, mask=mask), size)
        return Decoded(self.classify(x), means, *joined[-2])


class ImageToTextDecoder(BaseModule):
    """Words of a phrase with an erased entity attend to each other and to the pixels, to get back what was erased."""

    def __init__(self, layer: dict) -> None:
        super().__init__()
        embed_dim = layer["embed_dim"]
        self.conv = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.layer = DecoderLayer(**layer)

    def forward(self, words: Tensor, pixels: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """Words (E, L, C), of which none is masked, pixels (E, C, h, w), pixel_mask (E, P) -> words (E, L, C)."""
        memory, _ = flatten_map(F.relu(self.norm(self.conv(pixels))))
        return self.layer(words, memory, memory_mask=pixel_mask)


class Contrast(BaseModule):
    """Cosines of each expression's pixels with all phrases.

    The means of the joined levels are merged from coarse to fine. A phrase is the mean of its projected words.
    """

    def __init__(self, embed_dim: int, num_levels: int) -> None:
        super().__init__()
        self.merge = nn.ModuleList(nn.Linear(2 * embed_dim, embed_dim) for _ in range(num_levels - 1))
        self.project = nn.Linear(embed_dim, embed_dim)

    def forward(self, means: Sequence[Tensor], words: Tensor) -> Tensor:
        """Means (E, C) of levels, coarse to fine, and words (E, L, C) -> cosines (E, E) in fp32."""
        vision = means[0]
        for merge, mean in zip(self.merge, means[1:], strict=True):
            vision = merge(torch.cat([vision, mean], 1))
        text = self.project(words.mean(1))
        return F.normalize(vision.float(), dim=1) @ F.normalize(text.float(), dim=1).T
