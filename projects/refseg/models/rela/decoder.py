"""ReLA's decoder: region-image cross-attention (RIA) and region-language cross-attention (RLA).

Letters: B images, E expressions, K the most expressions of an image, N regions, L words, C channels, D channels of
words, S pixels of a level.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_at_least
from refseg.models.layers import (
    Attention,
    DecodedQueries,
    Groups,
    PixelFeatures,
    feed_forward,
    init_mask2former,
    pixel_attn_mask,
)
from refseg.registry import MODELS


class RegionImage(nn.Module):
    """RIA: regions attend to the pixels of a level; post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, pixel_dim: int) -> None:
        super().__init__()
        self.cross_attn_pixels = Attention(embed_dim, num_heads, memory_dim=pixel_dim)
        self.norm = nn.LayerNorm(embed_dim)
        init_mask2former(self)

    def forward(
        self,
        region: Tensor,
        pixels: Tensor,
        attn_mask: Tensor,
        *,
        position: Tensor,
        pixel_position: Tensor,
        groups: Groups,
    ) -> Tensor:
        """Update region (E, N, C) with position (N, C) from pixels and pixel_position (B, S, C); mask (B, K N, S)."""
        grouped = groups.group(region + position)  # (B, K N, C)
        update = self.cross_attn_pixels(grouped, pixels, attn_mask, memory_position=pixel_position)
        return self.norm(region + groups.ungroup(update))


class RegionLanguage(nn.Module):
    """RLA, language part: X + scale sigmoid(weight) norm(X + attention of X to words).

    With zero-initialized words the attention output is zero, so X is scaled by 1.05 at the start, as in the published
    code.
    """

    def __init__(self, embed_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.cross_attn_words = Attention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)
        self.weight = nn.Parameter(torch.tensor(0.0))
        init_mask2former(self)

    def forward(self, region: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Update region (E, N, C) from words (E, L, C) with word_mask (E, L)."""
        update = self.norm(region + self.cross_attn_words(region, words, word_mask))
        return region + self.scale * self.weight.sigmoid() * update


class RegionRegion(nn.Module):
    """RLA, vision part: self-attention of regions and feed-forward; post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn, self.norm_self = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.ffn, self.norm_ffn = feed_forward(embed_dim, ffn_dim), nn.LayerNorm(embed_dim)
        init_mask2former(self)

    def forward(self, region: Tensor, position: Tensor) -> Tensor:
        update = self.self_attn(region, region, x_position=position, memory_position=position)
        region = self.norm_self(region + update)
        return self.norm_ffn(region + self.ffn(region))


@MODELS.register_module()
class RegionDecoder(BaseModule):
    """Learnable regions, refined block by block. Blocks cycle through the pixel decoder's levels, coarse to fine.

    As in the published code, a region attends to the pixels inside its current mask from the first block on, and words
    are used in the first block only.

    Args:
        embed_dim: C.
        pixel_dim: Channels of the pixel decoder's levels.
        word_dim: D.
        num_queries: N, a grid of 10 x 10 regions.
        num_blocks: Number of blocks; 9 in the published code.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks.
        word_scale: Scale of the update from words; 0.1 in the published code.
        zero_words: Initialize the projection of words with zeros, as in the published code. Do not use it with losses
            that compare queries with words, as InstAlign's: zeros have no direction.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        pixel_dim: int,
        word_dim: int,
        num_queries: int = 100,
        num_blocks: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        word_scale: float = 0.1,
        zero_words: bool = True,
    ) -> None:
        super().__init__()
        check_at_least("decoder.num_queries", num_queries, 1)
        check_at_least("decoder.num_blocks", num_blocks, 1)
        if embed_dim % num_heads:
            raise ConfigError(f"decoder.num_heads {num_heads} must divide embed_dim {embed_dim}. Change one of them.")
        self.num_queries, self.num_blocks = num_queries, num_blocks
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.level_embed = nn.Parameter(torch.randn(3, pixel_dim))
        self.project_words = nn.Linear(word_dim, embed_dim, bias=False)
        if zero_words:
            nn.init.zeros_(self.project_words.weight)
        self.region_image = nn.ModuleList(RegionImage(embed_dim, num_heads, pixel_dim) for _ in range(num_blocks))
        self.region_language = RegionLanguage(embed_dim, num_heads, word_scale)
        self.region_region = nn.ModuleList(RegionRegion(embed_dim, num_heads, ffn_dim) for _ in range(num_blocks))

    def forward(
        self, pixels: PixelFeatures, word_feats: Tensor, word_mask: Tensor, *, groups: Groups, heads: nn.Module
    ) -> list[DecodedQueries]:
        """Return regions and projected words after each block.

        Args:
            pixels: Output of the pixel decoder.
            word_feats: (E, L, D).
            word_mask: (E, L).
            groups: Expressions by rows of pixels.
            heads: Provides `mask_embeddings`, which masked attention needs.
        """
        # Initial regions, projected words, and levels with their embeddings
        words = self.project_words(word_feats)  # (E, L, C)
        region = self.queries.repeat(words.shape[0], 1, 1)  # (E, N, C)
        levels = [level + embed for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        decoded: list[DecodedQueries] = []
        for number, (region_image, region_region) in enumerate(zip(self.region_image, self.region_region, strict=True)):
            # RIA: regions attend to the pixels inside their masks
            level = number % len(levels)
            region = region_image(
                region,
                levels[level],
                pixel_attn_mask(pixels, level, heads.mask_embeddings(region), groups),
                position=self.query_position,
                pixel_position=pixels.positions[level],
                groups=groups,
            )
            # RLA: regions attend to words (first block only) and to each other
            if number == 0:
                region = self.region_language(region, words, word_mask)
            region = region_region(region, self.query_position)
            decoded.append(DecodedQueries(region, words))
        return decoded
