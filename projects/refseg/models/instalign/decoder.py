"""InstAlign's text-conditioned transformer decoder (section 11.2), on Mask2Former's.

Letters: B images, E expressions, K the most expressions of an image, N queries, L words, C channels, S pixels of a
level.
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
    QueryHeads,
    feed_forward,
    pixel_attn_mask,
)
from refseg.registry import MODELS


class DecoderBlock(nn.Module):
    """Queries read the pixels of a level; queries and words read each other; queries read each other; feed-forward.
    What is read is added, and the sum normalised, as in Mask2Former.

    `reads_words`, `updates_words`: the two directions of the object-text attention.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        pixel_dim: int,
        reads_words: bool,
        updates_words: bool,
    ) -> None:
        super().__init__()
        # Norms have names instead of numbers: `.norm1.` in a schedule's custom_keys means Swin's.
        self.cross_attn_pixels = Attention(embed_dim, num_heads, memory_dim=pixel_dim)
        self.norm_pixels = nn.LayerNorm(embed_dim)
        self.cross_attn_words = Attention(embed_dim, num_heads) if reads_words else None
        self.norm_words = nn.LayerNorm(embed_dim) if reads_words else None
        self.cross_attn_objects = Attention(embed_dim, num_heads) if updates_words else None
        self.norm_objects = nn.LayerNorm(embed_dim) if updates_words else None
        self.self_attn, self.norm_self = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.ffn, self.norm_ffn = feed_forward(embed_dim, ffn_dim), nn.LayerNorm(embed_dim)

    def forward(
        self,
        query: Tensor,
        words: Tensor,
        *,
        query_position: Tensor,
        word_mask: Tensor,
        pixels: Tensor,
        pixel_position: Tensor,
        pixel_mask: Tensor | None,
        groups: Groups,
    ) -> tuple[Tensor, Tensor]:
        """query (E, N, C), its position (N, C), words (E, L, C), pixels and position (B, S, C), pixel_mask (B, S) or
        (B, K N, S): True where it may be read."""
        read = self.cross_attn_pixels(
            groups.group(query + query_position), pixels, pixel_mask, memory_position=pixel_position
        )  # (B, K N, C)
        query = self.norm_pixels(query + groups.ungroup(read))
        read_words = (
            None
            if self.cross_attn_words is None
            else self.cross_attn_words(query, words, word_mask, x_position=query_position)
        )
        if self.cross_attn_objects is not None and self.norm_objects is not None:
            words = self.norm_objects(words + self.cross_attn_objects(words, query, memory_position=query_position))
        if read_words is not None and self.norm_words is not None:
            query = self.norm_words(query + read_words)
        query = self.norm_self(
            query + self.self_attn(query, query, x_position=query_position, memory_position=query_position)
        )
        return self.norm_ffn(query + self.ffn(query)), words


@MODELS.register_module()
class ObjectTextDecoder(BaseModule):
    """Learnable queries, refined block by block with the levels of the pixel decoder in turn, from coarse to fine.

    Args:
        embed_dim: C.
        pixel_dim: channels of the pixel decoder's levels.
        word_dim: channels of the text encoder's words.
        num_queries: N.
        num_blocks: 9, Mask2Former's; the paper's number was lost.
        masked_attention: from the second block on, a query reads the pixels inside its mask so far, or all of them if
            there are none. Mask2Former's; the paper does not say.
        reads_words: False is "M2F + InstAlign" of Table 3d: nothing here sees the text, and queries are of images.
        updates_words: whether words read the queries in turn ("a minor enhancement").
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
        masked_attention: bool = True,
        reads_words: bool = True,
        updates_words: bool = True,
    ) -> None:
        super().__init__()
        self.masked_attention, self.reads_words = masked_attention, reads_words
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.level_embed = nn.Parameter(torch.randn(3, pixel_dim))
        self.project_words = nn.Linear(word_dim, embed_dim)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                embed_dim,
                num_heads,
                ffn_dim,
                pixel_dim=pixel_dim,
                reads_words=reads_words,
                updates_words=reads_words and updates_words,
            )
            for _ in range(num_blocks)
        )

    def forward(
        self, pixels: PixelFeatures, word_feats: Tensor, word_mask: Tensor, *, groups: Groups, heads: QueryHeads
    ) -> list[DecodedQueries]:
        """word_feats (E, L, D), word_mask (E, L) -> queries and words after each block."""
        words = self.project_words(word_feats)
        rows = None if self.reads_words else torch.tensor(groups.rows, device=words.device)
        if rows is not None:
            groups = Groups([1] * len(groups.counts), words.device)
        query = self.queries.repeat(sum(groups.counts), 1, 1)  # (E, N, C)
        levels = [level + embed for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        decoded: list[DecodedQueries] = []
        for number, block in enumerate(self.blocks):
            level = number % len(levels)
            attn_mask = pixels.masks[level] if pixels.padded else None
            if self.masked_attention and number:
                attn_mask = pixel_attn_mask(pixels, level, heads.mask_embeddings(query), groups)
            query, words = block(
                query,
                words,
                query_position=self.query_position,
                word_mask=word_mask,
                pixels=levels[level],
                pixel_position=pixels.positions[level],
                pixel_mask=attn_mask,
                groups=groups,
            )
            decoded.append(DecodedQueries(query if rows is None else query[rows], words))
        return decoded
