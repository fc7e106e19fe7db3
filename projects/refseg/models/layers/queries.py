"""Heads and masked attention of object queries, as in Mask2Former.

Letters: B images, E expressions, K the most expressions of an image, N queries, L words, C channels, D channels of the
mask features, S pixels of a level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers.attention import mlp
from refseg.models.layers.groups import Groups
from refseg.models.layers.pixel_decoder import PixelFeatures


class DecodedQueries(NamedTuple):
    """Output of one decoder block: `query_feats` (E, N, C), `word_feats` (E, L, C), and the weights of its attention
    from queries to words, `word_attention` (E, heads, N, L), if the block has one."""

    query_feats: Tensor
    word_feats: Tensor
    word_attention: Tensor | None = None


class QueryHeads(BaseModule):
    """Relevance and mask heads, shared by all decoder blocks (InstAlign, section 11.3, eq. 9).

    The dot product of a query's mask embedding with the mask features is its mask. As in Mask2Former, the heads have a
    LayerNorm of their own.
    """

    def __init__(self, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.relevance = mlp((embed_dim, embed_dim, 1))
        self.mask = mlp((embed_dim, embed_dim, embed_dim, mask_dim))

    def forward(self, query_feats: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (E, N, C) -> relevance logits (E, N) and mask embeddings (E, N, D)."""
        normed = self.norm(query_feats)
        return self.relevance(normed)[..., 0], self.mask(normed)

    def mask_embeddings(self, query_feats: Tensor) -> Tensor:
        """Queries (E, N, C) -> mask embeddings (E, N, D)."""
        return self.mask(self.norm(query_feats))


def pixel_attn_mask(pixels: PixelFeatures, level: int, mask_embeds: Tensor, groups: Groups) -> Tensor:
    """Return the mask of masked attention (Mask2Former, section 3.2.2), (B, K N, S) bool.

    A query attends to the pixels of a level inside its own mask, which `mask_embeds` (E, N, D) and the mask features
    make. If none is inside, it attends to the whole image. Padding is never attended to, and there is no gradient.
    """
    # Interpolation is linear, so resize D feature maps per image instead of N masks per expression
    mask_embeds = mask_embeds.detach()
    feats = F.interpolate(pixels.mask_feats.detach(), size=pixels.sizes[level], mode="bilinear", align_corners=False)
    inside = torch.bmm(groups.group(mask_embeds), feats.flatten(2)) >= 0  # (B, K N, S)
    if not pixels.padded:
        return inside | ~inside.any(-1, keepdim=True)
    valid = pixels.masks[level].flatten(1)[:, None]
    inside &= valid
    return (inside | ~inside.any(-1, keepdim=True)) & valid
