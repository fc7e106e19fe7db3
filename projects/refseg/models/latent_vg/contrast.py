"""Losses that keep latent expressions near their text and apart from other texts' (Latent-VG, "Positive-Margin
Contrastive Loss" and the losses that it is compared with).

Letters: E expressions, N latent expressions of each, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError
from refseg.structures import Batch

ContrastLoss = Literal["positive_margin", "infonce", "triplet", "arcface"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """`loss`: "positive_margin", the paper's; "infonce", "triplet" and "arcface", its ablation. `margin`: gamma, 0.2;
    the triplet's, between cosines; ArcFace's, an angle; "infonce" has none. `temperature`: of all but the triplet, not
    told; InfoNCE's usual 0.07. `weight`: of the loss; the text weighs only the others."""

    loss: ContrastLoss = "positive_margin"
    margin: float = 0.2
    temperature: float = 0.07
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in get_args(ContrastLoss):
            raise ConfigError(f"contrast.loss is one of {', '.join(get_args(ContrastLoss))}, not {self.loss!r}")
        if not 0 <= self.margin < 2:
            raise ConfigError(f"contrast.margin must be in [0, 2), not {self.margin}")
        if self.temperature <= 0 or self.weight <= 0:
            raise ConfigError(f"contrast.temperature and weight must be positive: {self.temperature}, {self.weight}")


def cosines(texts: Tensor, latents: Tensor) -> Tensor:
    """Texts (E, C) and latent expressions (F, N, C) -> (E, F, N), not in half precision."""
    with torch.autocast(texts.device.type, enabled=False):
        texts, latents = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1) for x in (texts, latents))
        return torch.einsum("ec,fnc->efn", texts, latents)


def same_target(batch: Batch) -> Tensor:
    """(E, E) bool: expressions of one image with the same referents, which are no negatives of each other."""
    most = max(len(refers) for refers in batch.referents)
    referents = torch.stack([F.pad(refers, (0, most - len(refers))) for refers in batch.referents])  # (E, I)
    alike = (referents[:, None] == referents).all(-1)
    return alike & (batch.image_of[:, None] == batch.image_of)


def positive_margin(positive: Tensor, margin: float) -> Tensor:
    """A margin is added to cosines of a text with its own latent expressions, as far as 1: those that reach 1 - margin
    are near enough, and have no gradient of their own. The formula itself is not in the text we have."""
    return (positive + margin).clamp_max(1.0)


def arcface_margin(positive: Tensor, margin: float) -> Tensor:
    """cos(angle + margin), and beyond pi a straight line that goes on falling (Deng et al. 2019)."""
    sine = (1 - positive.square()).clamp_min(1e-6).sqrt()
    turned = positive * math.cos(margin) - sine * math.sin(margin)
    return torch.where(positive > -math.cos(margin), turned, positive - margin * math.sin(margin))


def contrast_loss(similarity: Tensor, related: Tensor, settings: Contrast) -> Tensor:
    """Cosines (E, F, N) of texts with all latent expressions, E = F; `related` (E, F) bool, True on the diagonal: what
    is no negative. Mean over texts and latent expressions; without any negative 0. Negatives are those of this
    process."""
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
