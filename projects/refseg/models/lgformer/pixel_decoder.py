"""LGFormer's language-guided pixel decoder (section 3.2.2).

Letters: E expressions, L words, C channels, D channels of words, S pixels of all levels, (h, w) a level's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import (
    Attention,
    feed_forward,
    flatten_levels,
    masked_mean,
    pixel_centers,
    sine_position,
    split_levels,
)
from refseg.ops import MultiScaleDeformableAttention
from refseg.structures import EncodedFeatures

Words = Literal["words", "sentence"]


class Decoded(NamedTuple):
    """`levels`, fine to coarse (E, S_i, C), with `positions` and `masks` (E, S_i) alike; `mask_feats` (E, C, h, w)."""

    levels: list[Tensor]
    positions: list[Tensor]
    masks: list[Tensor]
    mask_feats: Tensor


class PixelDecoderLayer(nn.Module):
    """Multi-scale deformable attention, cross-attention to words ("L2VA"), feed-forward; each added and normalised.

    `reads_words` False leaves the second out (Table 4).
    """

    def __init__(
        self, embed_dim: int, num_heads: int, ffn_dim: int, *, num_levels: int, num_points: int, reads_words: bool
    ) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(
            embed_dim, num_heads, num_levels, num_points, dropout=0.0, batch_first=True
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_words = Attention(embed_dim, num_heads) if reads_words else None
        self.norm2 = nn.LayerNorm(embed_dim) if reads_words else None
        self.ffn = feed_forward(embed_dim, ffn_dim)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(
        self,
        pixels: Tensor,
        words: Tensor,
        word_mask: Tensor | None,
        *,
        position: Tensor,
        padding: Tensor | None,
        centers: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        pixels = self.norm1(
            self.self_attn(
                pixels,
                query_pos=position,
                key_padding_mask=padding,
                reference_points=centers,
                spatial_shapes=shapes,
            )
        )
        if self.cross_attn_words is not None and self.norm2 is not None:
            pixels = self.norm2(pixels + self.cross_attn_words(pixels, words, word_mask, x_position=position))
        return self.norm3(pixels + self.ffn(pixels))


class LanguageGuidedPixelDecoder(BaseModule):
    """Pixels of the three coarser levels read each other and the words, N times.

    Args:
        level_dims: channels of the encoder's levels, fine to coarse; the coarsest three are decoded.
        word_dim: D.
        num_layers: the paper's N, 6 (3 in Table 5).
        l2va: what the pixels read: "words" as they are, "sentence", their mean (Table 6), or None (Table 4).
        lateral: the paper makes mask features by bilinear interpolation of the stride-8 level, and names nothing else.
            True joins in the encoder's stride-4 level, as Mask2Former's pixel decoder does, on which this one is built.
    """

    def __init__(
        self,
        *,
        level_dims: Sequence[int],
        word_dim: int,
        embed_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_points: int = 4,
        l2va: Words | None = "words",
        lateral: bool = False,
    ) -> None:
        super().__init__()
        if l2va not in ("words", "sentence", None):
            raise ValueError(f"l2va is 'words', 'sentence' or None, not {l2va!r}")
        if len(level_dims) != 3 + lateral:
            raise ValueError(f"{3 + lateral} levels are needed with lateral={lateral}, got {len(level_dims)}")
        self.embed_dim, self.l2va = embed_dim, l2va
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, embed_dim, 1), nn.GroupNorm(min(32, embed_dim), embed_dim))
            for dim in level_dims[-3:]
        )
        self.level_embed = nn.Parameter(torch.randn(3, embed_dim))
        self.project_words = nn.Linear(word_dim, embed_dim) if l2va else None
        self.layers = nn.ModuleList(
            PixelDecoderLayer(
                embed_dim, num_heads, ffn_dim, num_levels=3, num_points=num_points, reads_words=l2va is not None
            )
            for _ in range(num_layers)
        )
        self.lateral = nn.Conv2d(level_dims[0], embed_dim, 1) if lateral else None
        self.refine = nn.Conv2d(embed_dim, embed_dim, 3, padding=1) if lateral else None

    def forward(self, features: EncodedFeatures, word_feats: Tensor, word_mask: Tensor, *, padded: bool) -> Decoded:
        """Features with one row per expression; word_feats (E, L, D), word_mask (E, L); `padded`: some pixels are."""
        levels, masks = features.levels[-3:], features.masks[-3:]
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        counts = [height * width for height, width in sizes]
        maps = [project(level) for project, level in zip(self.project, levels, strict=True)]
        pixels = flatten_levels(maps)  # (E, S, C)
        position = torch.cat(
            [
                sine_position(mask, self.embed_dim).to(pixels.dtype) + embed
                for mask, embed in zip(masks, self.level_embed, strict=True)
            ],
            1,
        )
        valid = torch.cat([mask.flatten(1) for mask in masks], 1)  # (E, S)
        centers = pixel_centers(sizes, pixels.device)[None, :, None].expand(len(pixels), -1, 3, -1)
        words, words_valid = self._words(word_feats, word_mask)
        for layer in self.layers:
            pixels = layer(
                pixels,
                words,
                words_valid,
                position=position,
                padding=~valid if padded else None,
                centers=centers,
                shapes=sizes,
            )
        return Decoded(
            list(pixels.split(counts, 1)),
            list(position.split(counts, 1)),
            list(valid.split(counts, 1)),
            self._mask_feats(split_levels(pixels, sizes)[0], features.levels[0]),
        )

    def _words(self, word_feats: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """What pixels read, (E, L or 1, C), and where it is valid."""
        if self.project_words is None:
            return word_feats, None
        if self.l2va == "sentence":
            return self.project_words(masked_mean(word_feats, word_mask))[:, None], None
        return self.project_words(word_feats), word_mask

    def _mask_feats(self, stride8: Tensor, stride4: Tensor) -> Tensor:
        """Without `lateral` at stride 8: interpolating features and taking their product with a prototype is the same
        as interpolating the product, which has one channel; so that is left to the segmentor."""
        if self.lateral is None or self.refine is None:
            return stride8
        up = F.interpolate(stride8, size=stride4.shape[-2:], mode="bilinear", align_corners=False)
        return self.refine(F.relu(up + self.lateral(stride4)))
