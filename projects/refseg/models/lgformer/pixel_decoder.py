"""LGFormer's language-guided pixel decoder (section 3.2.2).

Letters: E expressions, L words, C channels, D channels of words, S pixels of all levels, (h, w) a level's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.layers import (
    Attention,
    check_width,
    feed_forward,
    flatten_levels,
    masked_mean,
    pixel_centers,
    sine_position,
    split_levels,
)
from refseg.ops.module import MultiScaleDeformableAttention
from refseg.structures import EncodedFeatures

Words = Literal["words", "sentence"]


class Decoded(NamedTuple):
    """Output of the pixel decoder: `mask_feats` (E, C, h, w), and by level, fine to coarse, pixels and `positions`
    (E, S_i, C) and `masks` (E, S_i)."""

    levels: list[Tensor]
    positions: list[Tensor]
    masks: list[Tensor]
    mask_feats: Tensor


class PixelDecoderLayer(nn.Module):
    """Multi-scale deformable attention, cross-attention to words ("L2VA"), feed-forward; post-norm.

    Without `reads_words` there is no cross-attention (Table 4).
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
        # Deformable self-attention of pixels, which adds its input itself
        pixels = self.self_attn(
            pixels, query_pos=position, key_padding_mask=padding, reference_points=centers, spatial_shapes=shapes
        )
        pixels = self.norm1(pixels)
        # Cross-attention: pixels to words
        if self.cross_attn_words is not None and self.norm2 is not None:
            pixels = self.norm2(pixels + self.cross_attn_words(pixels, words, word_mask, x_position=position))
        # Feed-forward
        return self.norm3(pixels + self.ffn(pixels))


class LanguageGuidedPixelDecoder(BaseModule):
    """Attention of the pixels of the three coarser levels to each other and to words.

    Args:
        level_dims: Channels of the encoder's levels, fine to coarse. The coarsest three are decoded.
        word_dim: D.
        embed_dim: C.
        num_layers: The paper's N, 6 (3 in Table 5).
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks.
        num_points: Sampling points of deformable attention, per head and level.
        l2va: The memory of the pixels' cross-attention: "words", "sentence", their mean (Table 6), or None (Table 4).
        lateral: Add the encoder's stride-4 level to the mask features, as in Mask2Former's pixel decoder, on which this
            one is based. The paper only interpolates the stride-8 level.
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
        check_choice("pixel_decoder.l2va", l2va, (*get_args(Words), None))
        check_width("embed_dim", embed_dim, num_heads)
        if len(level_dims) != 3 + lateral:
            raise ConfigError(
                f"pixel_decoder.lateral={lateral} needs {3 + lateral} encoder levels, got {len(level_dims)}. "
                "Set encoder.out_stages (of BEiT3Encoder: level_scales) accordingly."
            )
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
        """Decode features, which have one row per expression.

        Args:
            features: Levels and masks of the encoder.
            word_feats: (E, L, D).
            word_mask: (E, L).
            padded: Whether some pixels are padding.
        """
        # Project the three coarser levels and flatten them into one sequence
        levels, masks = features.levels[-3:], features.masks[-3:]
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        counts = [height * width for height, width in sizes]
        maps = [project(level) for project, level in zip(self.project, levels, strict=True)]
        pixels = flatten_levels(maps)  # (E, S, C)
        # Positions: sines plus an embedding of the level
        position = torch.cat(
            [
                sine_position(mask, self.embed_dim).to(pixels.dtype) + embed
                for mask, embed in zip(masks, self.level_embed, strict=True)
            ],
            1,
        )
        valid = torch.cat([mask.flatten(1) for mask in masks], 1)  # (E, S)
        centers = pixel_centers(sizes, pixels.device)[None, :, None].expand(pixels.shape[0], -1, 3, -1)
        # The memory of L2VA: words, or one sentence vector
        words, words_valid = word_feats, None  # (E, L or 1, C)
        if self.project_words is not None and self.l2va == "sentence":
            words = self.project_words(masked_mean(word_feats, word_mask))[:, None]
        elif self.project_words is not None:
            words, words_valid = self.project_words(word_feats), word_mask
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
        # Mask features at stride 8, or with `lateral` at stride 4
        mask_feats = split_levels(pixels, sizes)[0]
        if self.lateral is not None and self.refine is not None:
            stride4 = features.levels[0]
            up = F.interpolate(mask_feats, size=stride4.shape[-2:], mode="bilinear", align_corners=False)
            mask_feats = self.refine(F.relu(up + self.lateral(stride4)))
        levels, positions, masks = (list(tensor.split(counts, 1)) for tensor in (pixels, position, valid))
        return Decoded(levels, positions, masks, mask_feats)
