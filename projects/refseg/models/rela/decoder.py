"""ReLA's decoder: regions gather pixels (RIA), and relate to words and to each other (RLA).

Letters: B images, E expressions, K the most expressions of an image, N regions, L words, C channels, D channels of
words, S pixels of a level.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import (
    Attention,
    DecodedQueries,
    Groups,
    PixelFeatures,
    feed_forward,
    pixel_attn_mask,
)
from refseg.registry import MODELS


class RegionImage(nn.Module):
    """RIA: regions read the pixels of a level; what is read is added, and the sum normalised."""

    def __init__(self, embed_dim: int, num_heads: int, pixel_dim: int) -> None:
        super().__init__()
        self.cross_attn_pixels = Attention(embed_dim, num_heads, memory_dim=pixel_dim)
        self.norm = nn.LayerNorm(embed_dim)
        init_attention(self.cross_attn_pixels)

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
        """region (E, N, C), its position (N, C), pixels and theirs (B, S, C), attn_mask (B, K N, S)."""
        read = self.cross_attn_pixels(
            groups.group(region + position), pixels, attn_mask, memory_position=pixel_position
        )
        return self.norm(region + groups.ungroup(read))


class RegionLanguage(nn.Module):
    """RLA, its language part: X + scale sigmoid(weight) norm(X + what X reads of the words). Words of zeros are nothing
    to read at first: then X grows by 5 %, as in the published code."""

    def __init__(self, embed_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.cross_attn_words = Attention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)
        self.weight = nn.Parameter(torch.tensor(0.0))
        init_attention(self.cross_attn_words)

    def forward(self, region: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """region (E, N, C), words (E, L, C), word_mask (E, L)."""
        read = self.norm(region + self.cross_attn_words(region, words, word_mask))
        return region + self.scale * self.weight.sigmoid() * read


class RegionRegion(nn.Module):
    """RLA, its vision part, and the feed-forward after it; each added and normalised."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn, self.norm_self = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.ffn, self.norm_ffn = feed_forward(embed_dim, ffn_dim), nn.LayerNorm(embed_dim)
        init_attention(self.self_attn)
        for part in (self.ffn[0], self.ffn[2]):
            nn.init.xavier_uniform_(part.weight)

    def forward(self, region: Tensor, position: Tensor) -> Tensor:
        region = self.norm_self(region + self.self_attn(region, region, x_position=position, memory_position=position))
        return self.norm_ffn(region + self.ffn(region))


def init_attention(attention: Attention) -> None:
    """As PyTorch's attention is: Xavier, with query, key and value as one matrix; biases 0."""
    dim = attention.query.out_features
    for part in (attention.query, attention.key_value):
        bound = (6 / (3 * dim + part.in_features)) ** 0.5
        nn.init.uniform_(part.weight, -bound, bound)
    nn.init.xavier_uniform_(attention.out.weight)
    for part in (attention.query, attention.key_value, attention.out):
        nn.init.zeros_(part.bias)


@MODELS.register_module()
class RegionDecoder(BaseModule):
    """Learnable regions, refined block by block with the levels of the pixel decoder in turn, from coarse to fine.

    As in the published code: a region reads the pixels inside its mask so far, from the first block on; words are read
    in the first block only. Unlike there, padded words are never read (it reads 20 tokens, whatever they are).

    Args:
        embed_dim: C.
        pixel_dim: channels of the pixel decoder's levels.
        word_dim: D.
        num_queries: N, of 10 x 10 regions.
        num_blocks: 9 in the published code.
        word_scale: of what is read of the words; published code.
        zero_words: the projection of words begins with zeros (published code). Not for losses that compare queries with
            words, as InstAlign's: zeros have no direction.
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
        self.num_queries = num_queries
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
        """word_feats (E, L, D), word_mask (E, L) -> regions and projected words after each block. `heads` has
        `mask_embeddings`, which makes masks of regions."""
        words = self.project_words(word_feats)  # (E, L, C)
        region = self.queries.repeat(len(words), 1, 1)  # (E, N, C)
        levels = [level + embed for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        decoded: list[DecodedQueries] = []
        for number, (image, others) in enumerate(zip(self.region_image, self.region_region, strict=True)):
            level = number % len(levels)
            attn_mask = pixel_attn_mask(pixels, level, heads.mask_embeddings(region), groups)
            region = image(
                region,
                levels[level],
                attn_mask,
                position=self.query_position,
                pixel_position=pixels.positions[level],
                groups=groups,
            )
            if number == 0:
                region = self.region_language(region, words, word_mask)
            region = others(region, self.query_position)
            decoded.append(DecodedQueries(region, words))
        return decoded
