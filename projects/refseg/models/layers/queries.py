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

from refseg.models.layers.attention import init_xavier, mlp
from refseg.models.layers.groups import Groups
from refseg.models.layers.pixel_decoder import PixelFeatures


class DecodedQueries(NamedTuple):
    """After one block: `query_feats` (E, N, C), `word_feats` (E, L, C)."""

    query_feats: Tensor
    word_feats: Tensor


class QueryHeads(BaseModule):
    """Relevance, one logit per query, and the mask embedding whose dot products with pixels are the mask (InstAlign,
    section 11.3, eq. 9). The same heads read every block, after a norm of their own, as in Mask2Former."""

    def __init__(self, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.relevance = mlp((embed_dim, embed_dim, 1))
        self.mask = mlp((embed_dim, embed_dim, embed_dim, mask_dim))
        init_xavier(self)

    def forward(self, query_feats: Tensor) -> tuple[Tensor, Tensor]:
        """(E, N, C) -> relevance logits (E, N), mask embeddings (E, N, D)."""
        normed = self.norm(query_feats)
        return self.relevance(normed)[..., 0], self.mask(normed)

    def mask_embeddings(self, query_feats: Tensor) -> Tensor:
        """(E, N, C) -> (E, N, D)"""
        return self.mask(self.norm(query_feats))


def pixel_attn_mask(pixels: PixelFeatures, level: int, mask_embeds: Tensor, groups: Groups) -> Tensor:
    """(B, K N, S) bool: the pixels of a level inside each query's mask, which is what mask_embeds (E, N, D) and mask
    features make; all that are image where none is inside. Nothing learns from it.

    Interpolation is linear: of the features, D per image, it is the same as of the masks, N per expression.
    """
    mask_embeds = mask_embeds.detach()
    feats = F.interpolate(pixels.mask_feats.detach(), size=pixels.sizes[level], mode="bilinear", align_corners=False)
    inside = torch.bmm(groups.group(mask_embeds), feats.flatten(2)) >= 0  # (B, K N, S)
    if not pixels.padded:
        return inside | ~inside.any(-1, keepdim=True)
    valid = pixels.masks[level][:, None]
    inside &= valid
    return (inside | ~inside.any(-1, keepdim=True)) & valid
