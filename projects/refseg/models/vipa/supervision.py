"""Losses of VIPA: of the mask, and of the retrieval scores (eq. 4; Table VIII).

Letters: E expressions, P pixels of the level of retrieval, (h, w) its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.losses import covered_share, mask_bce_loss

RelevanceLoss = Literal["contrastive", "direct"]


@dataclass(frozen=True, slots=True)
class Supervision:
    """Kind and weights of the losses.

    Args:
        mask, dice, relevance: Weights of the mask's BCE and dice, and of the retrieval scores' loss. The paper gives
            none.
        scores: Loss of the retrieval scores (Table VIII): "contrastive", eq. 4; "direct", `threshold_loss`; or None.
        relevant_share: A pixel of the level of retrieval is positive if more than this share of it is mask. At 0 any
            mask pixel counts, so that small objects are not lost. The paper does not say.
        scale_bias: Learn a scale and a bias of the cosines before eq. 4 (`ScaleBias`). The paper does not. Reason: most
            pixels are negative, and without a bias the cheapest way to low cosines is to turn all pixels away from
            [CLS]. After that, all words rank the pixels alike.
    """

    mask: float = 1.0
    dice: float = 1.0
    relevance: float = 1.0
    scores: RelevanceLoss | None = "contrastive"
    relevant_share: float = 0.0
    scale_bias: bool = False

    def __post_init__(self) -> None:
        check_choice("supervision.scores", self.scores, (*get_args(RelevanceLoss), None))
        if not 0 <= self.relevant_share < 1:
            raise ConfigError(f"supervision.relevant_share must be in [0, 1), not {self.relevant_share}.")
        if self.scale_bias and self.scores != "contrastive":
            raise ConfigError("supervision.scale_bias is for supervision.scores='contrastive' only.")


class ScaleBias(nn.Module):
    """Turn cosines into logits with a learned scale and bias, as in SigLIP (Zhai et al. 2023).

    The scale starts at 10, as in SigLIP, and is learned as its logarithm. The bias starts at -1, the log odds of a
    quarter of the pixels; SigLIP starts it at -10, for one positive in a large batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, scores: Tensor) -> Tensor:
        return self.log_scale.exp() * scores + self.bias


def relevant_pixels(masks: Tensor, size: tuple[int, int], share: float) -> Tensor:
    """Return the pixels of which more than `share` is mask: masks (E, H, W) -> (E, h, w) bool."""
    return covered_share(masks, size) > share


def threshold_loss(scores: Tensor, relevant: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean distance of scores (E, P) from 0 if they have the wrong sign; relevant (E, P) is positive.

    This is our reading of the "direct thresholding loss", of which the paper gives only the name.
    """
    losses = F.relu(scores.where(~relevant, -scores))
    if valid is None:
        return losses.mean()
    return (losses * valid).sum() / valid.sum().clamp_min(1)


RELEVANCE_LOSSES = {"contrastive": mask_bce_loss, "direct": threshold_loss}
