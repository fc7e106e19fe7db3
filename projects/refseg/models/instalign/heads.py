"""From instances to one answer (InstAlign, section 3.3): the merged mask and "nothing here".

Letters: E expressions, N queries, L words, C channels, (h, w) the size of the mask features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import masked_mean, mlp

Aggregation = Literal["soft", "soft_without_prelu", "fixed"]
NoTargetFeatures = Literal["concat", "sentence", "relevant", "mean"]
EMPTY = -10.0  # logit of a pixel of a merged mask that nothing was merged into


def word_attention(query_feats: Tensor, word_feats: Tensor, word_mask: Tensor) -> Tensor:
    """Eq. 2: softmax over the words of Q T^T / sqrt(C), (E, N, L); 0 on padding."""
    with torch.autocast(query_feats.device.type, enabled=False):
        scores = torch.bmm(query_feats.float(), word_feats.float().transpose(1, 2)) * query_feats.shape[-1] ** -0.5
    mask = word_mask[:, None]
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def misalignment(query_feats: Tensor, word_feats: Tensor, attention: Tensor) -> Tensor:
    """Eqs. 3 and 4: 1 - cosine of each query and its phrase, the words weighted by attention (E, N, L) -> (E, N)."""
    with torch.autocast(query_feats.device.type, enabled=False):
        phrase = torch.bmm(attention.float(), word_feats.float())
    return 1 - F.cosine_similarity(query_feats.float(), phrase, dim=-1)


class InstanceAggregation(BaseModule):
    """Eq. 5: M = sum of p_i PReLU(m_i), on logits, with one learnable slope.

    `mode`: "soft" is the paper's; "soft_without_prelu" and "fixed" are the other rows of Table 3b. Fixed selection is
    the union of the masks of relevance above 0.5: the largest of their logits.
    """

    def __init__(self, mode: Aggregation = "soft") -> None:
        super().__init__()
        if mode not in ("soft", "soft_without_prelu", "fixed"):
            raise ValueError(f"aggregation is 'soft', 'soft_without_prelu' or 'fixed', not {mode!r}")
        self.mode = mode
        self.slope = nn.Parameter(torch.tensor([0.25])) if mode == "soft" else None

    def forward(self, mask_logits: Tensor, relevance: Tensor) -> Tensor:
        """mask_logits (E, N, h, w), relevance (E, N) in 0..1 -> merged logits (E, h, w)."""
        if self.mode == "fixed":
            chosen = (relevance > 0.5)[..., None, None]
            return mask_logits.masked_fill(~chosen, EMPTY).amax(1)
        logits = mask_logits if self.slope is None else F.prelu(mask_logits, self.slope.to(mask_logits.dtype))
        return torch.bmm(relevance[:, None].to(logits.dtype), logits.flatten(2))[:, 0].unflatten(1, logits.shape[2:])


class NoTargetPredictor(BaseModule):
    """Eq. 7 and the classifier after it: queries weighted by relevance, beside the sentence, -> one logit.

    Args:
        features: "concat" is the paper's; "sentence" alone, "relevant" (q_avg alone) and "mean" (of all queries) are
            the other rows of Table 3c.
        normalize: divides by the sum of relevance. Not by default: eq. 7 as it is read is a sum, whose size says how
            much of anything was found.
    """

    def __init__(
        self, *, embed_dim: int, sentence_dim: int, features: NoTargetFeatures = "concat", normalize: bool = False
    ) -> None:
        super().__init__()
        widths = dict(concat=embed_dim + sentence_dim, sentence=sentence_dim, relevant=embed_dim, mean=embed_dim)
        if features not in widths:
            raise ValueError(f"no_target features are one of {', '.join(widths)}, not {features!r}")
        self.features, self.normalize = features, normalize
        self.classifier = mlp((widths[features], embed_dim, 1))

    def forward(self, query_feats: Tensor, relevance: Tensor, word_feats: Tensor, word_mask: Tensor) -> Tensor:
        """query_feats (E, N, C), relevance (E, N), word_feats (E, L, D), word_mask (E, L) -> logits (E,)."""
        parts = []
        if self.features in ("concat", "relevant"):
            average = torch.bmm(relevance[:, None].to(query_feats.dtype), query_feats)[:, 0]  # (E, C)
            if self.normalize:
                average = average / relevance.sum(1, keepdim=True).clamp_min(1e-6)
            parts.append(average)
        if self.features == "mean":
            parts.append(query_feats.mean(1))
        if self.features in ("concat", "sentence"):
            parts.append(masked_mean(word_feats, word_mask))
        return self.classifier(torch.cat(parts, -1))[:, 0]
