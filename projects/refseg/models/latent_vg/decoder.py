"""Mask head of LatentVG: the product of upsampled patches and one vector per expression, averaged over expressions.

Letters: E texts, N + 1 expressions of each, C channels of the encoder, D of the head, (h, w) the size of the patches.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.layers import mlp, upsampler

Average = Literal["probs", "logits"]


def average_masks(masks: Tensor, average: Average) -> Tensor:
    """Average mask logits (E, N + 1, h, w) over expressions.

    "probs" averages the sigmoids and returns the logit of the mean: log(mean p / mean (1 - p)). "logits" averages the
    logits.
    """
    if average == "logits":
        return masks.mean(1)
    masks = masks if masks.dtype == torch.float64 else masks.float()
    return F.logsigmoid(masks).logsumexp(1) - F.logsigmoid(-masks).logsumexp(1)


class MaskDecoder(BaseModule):
    """Make a mask of each expression: the text and its latent expressions.

    The text we have says that masks of all expressions are averaged, but not how one is made.

    Args:
        embed_dim: C.
        width: D; 256 as in Mask2Former.
        scale: Resolution of the masks relative to the patches, a power of two. 4 is stride 4 for patches of 16.
        average: Average the masks' "probs", as a public note on the paper says, or their "logits" (`average_masks`).
    """

    def __init__(self, *, embed_dim: int, width: int = 256, scale: int = 4, average: Average = "probs") -> None:
        super().__init__()
        check_choice("decoder.average", average, get_args(Average))
        if scale < 1 or scale & (scale - 1):
            raise ConfigError(f"decoder.scale must be a power of two, not {scale}.")
        self.average: Average = average
        from timm.layers import LayerNorm2d  # here, because it imports torch.compile, which takes more than a second

        self.upsample = nn.Sequential(
            upsampler(embed_dim, width, scale), LayerNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 1)
        )
        self.embed = mlp((embed_dim, embed_dim, width))

    def forward(self, patches: Tensor, vectors: Tensor) -> Tensor:
        """Patches (E, C, h, w), vectors (E, N + 1, C) -> mask logits (E, N + 1, scale h, scale w)."""
        maps = self.upsample(patches)  # (E, D, scale h, scale w)
        return torch.bmm(self.embed(vectors), maps.flatten(2)).unflatten(2, maps.shape[-2:])
