"""Losses of VIPA: the mask's, and of the scores by which pixels are retrieved (eq. 4; Table VIII).

Letters: E expressions, P pixels of the level that is retrieved from, (h, w) its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.losses import covered_share, mask_bce_loss

RelevanceLoss = Literal["contrastive", "direct"]


@dataclass(frozen=True, slots=True)
class Supervision:
    """`mask`, `dice`, `relevance`: weights of the mask's BCE and dice, and of the loss of scores; the paper gives none.

    `scores` (Table VIII): "contrastive", eq. 4; "direct", `threshold_loss`; None, no loss of scores. `relevant_share`:
    a pixel of the level that is retrieved from belongs to the target if more than this share of it is mask; at 0, if
    any of it is, since small objects would have no pixel otherwise. The paper does not say.
    """

    mask: float = 1.0
    dice: float = 1.0
    relevance: float = 1.0
    scores: RelevanceLoss | None = "contrastive"
    relevant_share: float = 0.0

    def __post_init__(self) -> None:
        if self.scores not in (*get_args(RelevanceLoss), None):
            raise ConfigError(
                f"supervision.scores is one of {', '.join(get_args(RelevanceLoss))} and None, not {self.scores!r}"
            )
        if not 0 <= self.relevant_share < 1:
            raise ConfigError(f"supervision.relevant_share must be in [0, 1), not {self.relevant_share}")


def relevant_pixels(masks: Tensor, size: tuple[int, int], share: float) -> Tensor:
    """Masks (E, H, W) -> (E, h, w) bool: pixels of which more than `share` is mask."""
    return covered_share(masks, size) > share


def threshold_loss(scores: Tensor, relevant: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean distance of scores (E, P) from 0 where they are on its wrong side: below it on relevant pixels (E, P), above
    it elsewhere. Our reading of the paper's "direct thresholding loss", of which nothing but the name is told."""
    losses = F.relu(scores.where(~relevant, -scores))
    if valid is None:
        return losses.mean()
    return (losses * valid).sum() / valid.sum().clamp_min(1)


RELEVANCE_LOSSES = {"contrastive": mask_bce_loss, "direct": threshold_loss}
