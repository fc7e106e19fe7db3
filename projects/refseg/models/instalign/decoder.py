"""InstAlign's text-conditioned transformer decoder (section 11.2), based on Mask2Former's.

Letters: B images, E expressions, K the most expressions of an image, N queries, L words, C channels, D channels of
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
    QueryHeads,
    feed_forward,
    pixel_attn_mask,
)
from refseg.registry import MODELS


class DecoderBlock(nn.Module):
    """Cross-attention to pixels, object-text attention in both directions, self-attention, feed-forward; post-norm.

    Args:
        embed_dim: C.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward network.
        pixel_dim: Channels of the pixels.
        reads_words: Queries attend to words.
        updates_words: Words attend to queries.
        word_ffn_dim: Width of a feed-forward network of the words after that; None for none.
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
        word_ffn_dim: int | None = None,
    ) -> None:
        super().__init__()
        # Norms have names instead of numbers: `.norm1.` in a schedule's custom_keys means Swin's.
        self.cross_attn_pixels = Attention(embed_dim, num_heads, memory_dim=pixel_dim)
        self.norm_pixels = nn.LayerNorm(embed_dim)
        self.cross_attn_words = Attention(embed_dim, num_heads) if reads_words else None
        self.norm_words = nn.LayerNorm(embed_dim) if reads_words else None
        self.cross_attn_objects = Attention(embed_dim, num_heads) if updates_words else None
        self.norm_objects = nn.LayerNorm(embed_dim) if updates_words else None
        self.word_ffn = feed_forward(embed_dim, word_ffn_dim) if updates_words and word_ffn_dim else None
        self.norm_word_ffn = nn.LayerNorm(embed_dim) if self.word_ffn is not None else None
        self.self_attn, self.norm_self = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.ffn, self.norm_ffn = feed_forward(embed_dim, ffn_dim), nn.LayerNorm(embed_dim)

    def keep_words(self) -> None:
        """Pass words on as they are. Distributed training wants a gradient for every parameter, so a block whose words
        nothing reads has none for them."""
        self.cross_attn_objects = self.norm_objects = self.word_ffn = self.norm_word_ffn = None

    def forward(
        self,
        query: Tensor,
        words: Tensor,
        *,
        query_position: Tensor,
        word_mask: Tensor,
        pixels: Tensor,
        pixel_position: Tensor,
        attn_mask: Tensor | None,
        groups: Groups,
    ) -> DecodedQueries:
        """Update queries and words.

        Args:
            query: (E, N, C), with query_position (N, C).
            words: (E, L, C), with word_mask (E, L).
            pixels: (B, S, C), with pixel_position (B, S, C).
            attn_mask: (B, S) or (B, K N, S), True where a query may attend to a pixel.
            groups: Expressions by rows of pixels.
        """
        # Cross-attention: queries to pixels
        grouped = groups.group(query + query_position)  # (B, K N, C)
        update = self.cross_attn_pixels(grouped, pixels, attn_mask, memory_position=pixel_position)
        query = self.norm_pixels(query + groups.ungroup(update))
        # Object-text attention: queries to words, and words to the same queries
        new_words, attention = words, None
        if self.cross_attn_objects is not None and self.norm_objects is not None:
            update = self.cross_attn_objects(words, query, memory_position=query_position)
            new_words = self.norm_objects(words + update)
            if self.word_ffn is not None and self.norm_word_ffn is not None:
                new_words = self.norm_word_ffn(new_words + self.word_ffn(new_words))
        if self.cross_attn_words is not None and self.norm_words is not None:
            attention = self.cross_attn_words.weights(query, words, word_mask, x_position=query_position)
            query = self.norm_words(query + self.cross_attn_words.read(attention, words))
        # Self-attention of queries
        update = self.self_attn(query, query, x_position=query_position, memory_position=query_position)
        query = self.norm_self(query + update)
        # Feed-forward
        return DecodedQueries(self.norm_ffn(query + self.ffn(query)), new_words, attention)


@MODELS.register_module()
class ObjectTextDecoder(BaseModule):
    """Learnable queries, refined block by block. Blocks cycle through the pixel decoder's levels, coarse to fine.

    Args:
        embed_dim: C.
        pixel_dim: Channels of the pixel decoder's levels.
        word_dim: D.
        num_queries: N.
        num_blocks: Number of blocks. The paper's number is illegible in our copy; 9 is Mask2Former's.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks.
        masked_attention: From the second block on, a query attends to the pixels inside its current mask, or to all
            pixels if the mask is empty, as in Mask2Former. The paper does not say.
        first_masked: Masked attention in the first block, too, inside the masks of the initial queries. Mask2Former's
            published weights need it, because its initial queries are trained to have masks; ours are not.
        reads_words: Queries attend to words. False is "M2F + InstAlign" of Table 3d: the decoder ignores the text, and
            queries are computed once per image.
        updates_words: Words attend to queries in turn ("a minor enhancement").
        word_ffn_dim: Width of a feed-forward network of the words in each block. The paper has none in its text; with
            2048, `instalign_swinb` has 230.5 M parameters, near the published 230 M.
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
        first_masked: bool = False,
        reads_words: bool = True,
        updates_words: bool = True,
        word_ffn_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.reads_words, self.num_blocks = reads_words, num_blocks
        self.masked_from = (0 if first_masked else 1) if masked_attention else num_blocks
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
                word_ffn_dim=word_ffn_dim,
            )
            for _ in range(num_blocks)
        )

    def forward(
        self, pixels: PixelFeatures, word_feats: Tensor, word_mask: Tensor, *, groups: Groups, heads: QueryHeads
    ) -> list[DecodedQueries]:
        """Return queries and words after each block.

        Args:
            pixels: Output of the pixel decoder.
            word_feats: (E, L, D).
            word_mask: (E, L).
            groups: Expressions by rows of pixels.
            heads: Provides `mask_embeddings`, which masked attention needs.
        """
        words = self.project_words(word_feats)
        # Without words, queries are the same for all expressions of an image: decode images, repeat at the end
        of_expressions = groups
        if not self.reads_words:
            groups = Groups([1] * groups.num_rows, words.device)
        # Initial queries, and levels with their embeddings
        query = self.queries.repeat(groups.num_expressions, 1, 1)  # (E, N, C)
        levels = [level + embed for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        decoded: list[DecodedQueries] = []
        for number, block in enumerate(self.blocks):
            level = number % len(levels)
            attn_mask = pixels.masks[level].flatten(1) if pixels.padded else None
            if number >= self.masked_from:
                attn_mask = pixel_attn_mask(pixels, level, heads.mask_embeddings(query), groups)
            output = block(
                query,
                words,
                query_position=self.query_position,
                word_mask=word_mask,
                pixels=levels[level],
                pixel_position=pixels.positions[level],
                attn_mask=attn_mask,
                groups=groups,
            )
            query, words = output.query_feats, output.word_feats
            if not self.reads_words:
                counts = of_expressions.counts
                repeated = [row.expand(count, -1, -1) for row, count in zip(query.split(1), counts, strict=True)]
                output = output._replace(query_feats=torch.cat(repeated))  # (E, N, C)
            decoded.append(output)
        return decoded
