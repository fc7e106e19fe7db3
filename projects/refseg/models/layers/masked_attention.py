"""Mask2Former's masked attention (Cheng et al. 2022, section 3.2.2): which pixels a query may read.

Letters: B images, E expressions, K the most expressions of an image, N queries, D channels of mask features, S pixels
of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.models.layers.groups import Groups
from refseg.models.layers.pixel_decoder import PixelFeatures


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
