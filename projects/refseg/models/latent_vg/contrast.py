"""Losses that pull latent expressions to their own text and push them from other texts (LatentVG, "Positive-Margin
Contrastive Loss" and its ablations).

Letters: E expressions, F expressions that they are compared with, N latent expressions of each, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError, check_choice
from refseg.structures import Batch

ContrastLoss = Literal["positive_margin", "infonce", "triplet", "arcface"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Settings of the contrastive loss.

    Args:
        loss: "positive_margin", the paper's; "infonce", "triplet" and "arcface" are its ablation.
        margin: gamma, 0.2 in the paper. Between cosines for the triplet loss, an angle for ArcFace, unused by InfoNCE.
        temperature: Of all losses but the triplet. The paper does not give it; 0.07 is InfoNCE's usual value.
        weight: Loss weight; the text gives only the other weights.
    """

    loss: ContrastLoss = "positive_margin"
    margin: float = 0.2
    temperature: float = 0.07
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice("contrast.loss", self.loss, get_args(ContrastLoss))
        if not 0 <= self.margin < 2:
            raise ConfigError(f"contrast.margin must be in [0, 2), not {self.margin}.")
        if self.temperature <= 0 or self.weight <= 0:
            raise ConfigError(
                f"contrast.temperature and weight must be positive, not {self.temperature} and {self.weight}."
            )


def cosines(texts: Tensor, latents: Tensor) -> Tensor:
    """Return cosines (E, F, N) of texts (E, C) and latent expressions (F, N, C), in fp32 at least."""
    with torch.autocast(texts.device.type, enabled=False):
        texts, latents = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1) for x in (texts, latents))
        return torch.einsum("ec,fnc->efn", texts, latents)


def same_target(batch: Batch) -> Tensor:
    """Return which expressions are of one image with the same referents, (E, E) bool. They are not negatives."""
    most = max(len(refers) for refers in batch.referents)
    referents = torch.stack([F.pad(refers, (0, most - len(refers))) for refers in batch.referents])  # (E, I)
    alike = (referents[:, None] == referents).all(-1)
    return alike & (batch.image_of[:, None] == batch.image_of)


def positive_margin(positive: Tensor, margin: float) -> Tensor:
    """Return min(1, margin + cosine) of positives. Cosines of at least 1 - margin get no gradient.

    The formula is from a public note on the paper.
    """
    return (positive + margin).clamp_max(1.0)


def arcface_margin(positive: Tensor, margin: float) -> Tensor:
    """Return cos(angle + margin), continued beyond pi by a falling line (Deng et al. 2019)."""
    sine = (1 - positive.square()).clamp_min(1e-6).sqrt()
    turned = positive * math.cos(margin) - sine * math.sin(margin)
    return torch.where(positive > -math.cos(margin), turned, positive - margin * math.sin(margin))


def contrast_loss(similarity: Tensor, related: Tensor, settings: Contrast) -> Tensor:
    """Return the mean loss over texts and latent expressions; 0 without negatives. Negatives are of this process.

    Args:
        similarity: Cosines (E, F, N) of texts with all latent expressions, E = F.
        related: (E, F) bool, True for pairs that are not negatives, including the diagonal.
        settings: Kind of loss, margin and temperature.
    """
    positive = similarity.diagonal().t()  # (E, N)
    if settings.loss == "triplet":
        hinge = F.relu(similarity - positive[:, None] + settings.margin) * ~related[..., None]
        return hinge.sum() / ((~related).sum() * similarity.shape[2]).clamp_min(1)
    if settings.loss == "positive_margin":
        positive = positive_margin(positive, settings.margin)
    elif settings.loss == "arcface":
        positive = arcface_margin(positive, settings.margin)
    negatives = similarity.masked_fill(related[..., None], -math.inf)
    logits = torch.cat([positive[:, None], negatives], 1) / settings.temperature  # (E, 1 + F, N)
    return (logits.logsumexp(1) - logits[:, 0]).mean()
