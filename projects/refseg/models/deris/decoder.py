"""DeRIS's decoder: queries look at pixels block by block, and a loopback reads the words after each block.

Letters: B images, E expressions, N queries, L words, C channels, D channels of BEiT-3, S pixels of a level, P cells of
the middle level, (h, w) the size of the mask features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import check_at_least, check_choice, check_share
from refseg.models.layers import (
    Attention,
    Groups,
    PixelFeatures,
    feed_forward,
    init_mask2former,
    mlp,
    pixel_attn_mask,
)
from refseg.models.losses import BlockOutput

LoopbackAttention = Literal["queries", "itself"]


class DecoderOutput(NamedTuple):
    """Outputs before the first block and after each one, `mask_feats` (E, C, h, w), and `existence_logit` (E,)."""

    blocks: list[BlockOutput]
    mask_feats: Tensor
    existence_logit: Tensor


class ReadPixels(nn.Module):
    """Mask2Former's block: masked attention to pixels, self-attention, feed-forward network; post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, pixel_dim: int) -> None:
        super().__init__()
        self.cross_attn_pixels = Attention(embed_dim, num_heads, memory_dim=pixel_dim)
        self.norm_pixels = nn.LayerNorm(embed_dim)
        self.self_attn, self.norm_self = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.ffn, self.norm_ffn = feed_forward(embed_dim, ffn_dim), nn.LayerNorm(embed_dim)

    def forward(
        self,
        query: Tensor,
        pixels: Tensor,
        attn_mask: Tensor,
        image_of: Tensor,
        *,
        query_position: Tensor,
        pixel_position: Tensor,
    ) -> Tensor:
        """Queries (E, N, C) with positions (N, C), pixels (B, S, C) with positions, attn_mask (E, N, S)."""
        update = self.cross_attn_pixels(
            query, pixels, attn_mask, image_of, x_position=query_position, memory_position=pixel_position
        )
        query = self.norm_pixels(query + update)
        update = self.self_attn(query, query, x_position=query_position, memory_position=query_position)
        query = self.norm_self(query + update)
        return self.norm_ffn(query + self.ffn(query))


class ReadWords(nn.Module):
    """Self-attention of queries, attention to words, feed-forward network; post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.cross_attn_words = Attention(embed_dim, num_heads, dropout=dropout)
        self.norm_self, self.norm_words, self.norm_ffn = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.ffn = nn.Sequential(
            *(nn.Linear(embed_dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(ffn_dim, embed_dim), nn.Dropout(dropout)),
        )

    def forward(
        self, query: Tensor, words: Tensor, word_mask: Tensor, *, word_position: Tensor | None = None
    ) -> Tensor:
        """Queries (E, N, C), words (E, L, C) with word_mask (E, L) and positions (L, C)."""
        query = self.norm_self(query + self.self_attn(query, query))
        update = self.cross_attn_words(query, words, word_mask, memory_position=word_position)
        query = self.norm_words(query + update)
        return self.norm_ffn(query + self.ffn(query))


class Loopback(nn.Module):
    """Queries attend to each other with what lies inside their masks, and read the words, which gives their relevance.

    `attention` is `loopback_attention` of `LoopbackDecoder`.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, attention: LoopbackAttention) -> None:
        super().__init__()
        self.among_queries = attention == "queries"
        self.self_attn, self.norm = Attention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.read_words = ReadWords(embed_dim, num_heads, ffn_dim)
        self.join = nn.Linear(2 * embed_dim, embed_dim)

    def forward(
        self, query: Tensor, inside: Tensor, words: Tensor, word_mask: Tensor, word_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and `inside`, the mean features of their masks (E, N, C) each -> new queries, and what they read."""
        rows, positions = (x if self.among_queries else x.flatten(0, 1)[:, None] for x in (query, inside))
        update = self.self_attn(rows, rows, x_position=positions, memory_position=positions)
        query = self.norm(query + update.view_as(query))
        read = self.read_words(query, words, word_mask, word_position=word_position)
        return self.join(torch.cat([query, read], -1)), read


def sine_words(length: int, dim: int, device: torch.device) -> Tensor:
    """Return positions of words (L, C): sine and cosine of the position in the first two channels, then 0 and 1.

    The published code rounds the frequencies of the other channels down to 0.
    """
    angle = torch.zeros(length, dim // 2, device=device)
    angle[:, 0] = torch.arange(length, device=device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class LoopbackDecoder(BaseModule):
    """Queries of the cognition branch, refined by blocks of the perception branch and a loopback after each.

    Args:
        embed_dim: C.
        encoder_dim: D.
        num_queries: N; 20 for gRefCOCO and 10 for RefCOCO in the published code.
        num_blocks: Number of blocks. They cycle through the pixel decoder's levels, coarse to fine.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks of blocks and loopbacks.
        loopback_attention: "queries": in a loopback, the queries of a phrase attend to each other. "itself": each one
            attends to itself alone, and what lies inside the masks has no effect, as in the published code with one
            phrase in a batch. There, a query attends to those of the same number of all phrases in the batch.
        num_readers: Layers that read the words at the end, for "nothing here".
        reader_ffn_dim: Width of their feed-forward networks.
        dropout: Dropout in these layers.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        encoder_dim: int,
        num_queries: int = 20,
        num_blocks: int = 3,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        loopback_attention: LoopbackAttention = "queries",
        num_readers: int = 3,
        reader_ffn_dim: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least("decoder.num_queries", num_queries, 1)
        check_at_least("decoder.num_blocks", num_blocks, 1)
        check_share("decoder.dropout", dropout)
        check_choice("decoder.loopback_attention", loopback_attention, get_args(LoopbackAttention))
        self.queries = nn.Parameter(torch.randn(num_queries, encoder_dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.level_embed = nn.Parameter(torch.randn(3, embed_dim))
        self.project_queries, self.project_words, self.project_patches = (
            nn.Linear(encoder_dim, embed_dim) for _ in range(3)
        )
        self.join_pixels = nn.Conv2d(embed_dim, embed_dim, 1)
        self.join_patches = nn.Conv2d(embed_dim, embed_dim, 1, bias=False)
        self.norm, self.mask = nn.LayerNorm(embed_dim), mlp((embed_dim,) * 4)
        self.loopbacks = nn.ModuleList(
            Loopback(embed_dim, num_heads, ffn_dim, attention=loopback_attention) for _ in range(num_blocks + 1)
        )
        self.relevance = nn.Linear(embed_dim, 2)
        self.blocks = nn.ModuleList(
            ReadPixels(embed_dim, num_heads, ffn_dim, pixel_dim=embed_dim) for _ in range(num_blocks)
        )
        self.readers = nn.ModuleList(
            ReadWords(embed_dim, num_heads, reader_ffn_dim, dropout=dropout) for _ in range(num_readers)
        )
        self.norm_read, self.existence = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, 1)
        for part in (*self.blocks, *(loopback.self_attn for loopback in self.loopbacks)):
            init_mask2former(part)

    def forward(
        self, pixels: PixelFeatures, patches: Tensor, words: Tensor, word_mask: Tensor, *, image_of: Tensor
    ) -> DecoderOutput:
        """Decode the queries.

        Args:
            pixels: Output of the pixel decoder, one row per image.
            patches: (E, D, p, p), BEiT-3's.
            words: (E, L, D), BEiT-3's, with word_mask (E, L).
            image_of: (E,).
        """
        words = self.project_words(words)
        word_position = sine_words(words.shape[1], words.shape[2], words.device).to(words.dtype)
        # Mask features of each expression: a 1x1 convolution of both branches' maps. It commutes with resizing.
        maps = self.join_patches(self.project_patches(patches.movedim(1, -1)).movedim(-1, 1))
        size = (pixels.mask_feats.shape[-2], pixels.mask_feats.shape[-1])
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        mask_feats = self.join_pixels(pixels.mask_feats).index_select(0, image_of) + maps  # (E, C, h, w)
        of_expressions = pixels._replace(
            mask_feats=mask_feats, masks=[mask.index_select(0, image_of) for mask in pixels.masks]
        )
        groups = Groups(words.shape[0], words.device)
        levels = [level + embed for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        # Cells of the middle level, over which the features inside a mask are averaged
        sampled = F.interpolate(mask_feats, size=pixels.sizes[1], mode="bilinear", align_corners=False).flatten(2)
        cells = F.adaptive_avg_pool2d(mask_feats, pixels.sizes[1]).flatten(2).transpose(1, 2)  # (E, P, C)
        if pixels.padded:
            on_image = of_expressions.masks[1].flatten(1).to(cells.dtype)  # (E, P)
            cells = cells * (on_image / on_image.mean(1, keepdim=True).clamp_min(1e-6))[..., None]
        query = self.project_queries(self.queries).expand(words.shape[0], -1, -1)  # (E, N, C)
        blocks: list[BlockOutput] = []
        for number, loopback in enumerate(self.loopbacks):
            # Queries to pixels inside their masks
            if number:
                level = (number - 1) % len(levels)
                query = self.blocks[number - 1](
                    query,
                    levels[level],
                    pixel_attn_mask(of_expressions, level, blocks[-1].mask_embeds, groups),
                    image_of,
                    query_position=self.query_position,
                    pixel_position=pixels.positions[level],
                )
            mask_embeds = self.mask(self.norm(query))
            # Mean features inside the masks, then the loopback
            inside = torch.bmm(torch.bmm(mask_embeds, sampled).sigmoid(), cells) / cells.shape[1]
            query, read = loopback(query, inside, words, word_mask, word_position)
            refers, other = self.relevance(read).unbind(-1)
            blocks.append(BlockOutput(refers - other, mask_embeds))
        # "Nothing here": queries read the words again
        for reader in self.readers:
            query = reader(query, words, word_mask)
        return DecoderOutput(blocks, mask_feats, self.existence(self.norm_read(query)).mean((1, 2)))
