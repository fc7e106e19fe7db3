"""InstAlign's phrase-object alignment (section 3.2) and instance aggregation (section 3.3).

Letters: E expressions, N queries, L words, C channels, D channels of words, (h, w) the size of the mask features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import check_choice
from refseg.models.layers import masked_mean, masked_softmax, mlp
from refseg.models.losses.functional import PADDING_LOGIT

Aggregation = Literal["soft", "soft_without_prelu", "fixed"]
NoTargetFeatures = Literal["concat", "concat_mask", "sentence", "relevant", "mean"]
NUM_STATISTICS = 6  # of one block's masks (`mask_statistics`)
EMPTY = -10.0  # logit of a merged mask's pixel if no instance is selected


def word_attention(query_feats: Tensor, word_feats: Tensor, word_mask: Tensor) -> Tensor:
    """Eq. 2: softmax over words of Q T^T / sqrt(C), (E, N, L), in fp32; 0 on padding."""
    with torch.autocast(query_feats.device.type, enabled=False):
        scores = torch.bmm(query_feats.float(), word_feats.float().transpose(1, 2)) * query_feats.shape[-1] ** -0.5
    return masked_softmax(scores, word_mask[:, None])


def misalignment(query_feats: Tensor, word_feats: Tensor, attention: Tensor) -> Tensor:
    """Eqs. 3 and 4: 1 - cosine of each query and its attention-weighted words, (E, N).

    It is computed in fp32, which cosines near 1 need. `attention` is (E, N, L).
    """
    with torch.autocast(query_feats.device.type, enabled=False):
        phrase = torch.bmm(attention.float(), word_feats.float())
    return 1 - F.cosine_similarity(query_feats.float(), phrase, dim=-1)


class InstanceAggregation(BaseModule):
    """Merge instance masks into one (eq. 5): M = sum of p_i PReLU(m_i), on logits, with one learnable slope.

    Args:
        mode: "soft", the paper's; "soft_without_prelu" and "fixed" are the other rows of Table 3b. Fixed selection is
            the union of the masks with relevance above 0.5, as the maximum of their logits.
    """

    def __init__(self, mode: Aggregation = "soft") -> None:
        super().__init__()
        check_choice("aggregation", mode, get_args(Aggregation))
        self.mode = mode
        # A slope of 1 is no PReLU
        slope = torch.tensor([0.25 if mode == "soft" else 1.0])
        self.slope = nn.Parameter(slope, requires_grad=mode == "soft")

    def forward(self, mask_logits: Tensor, relevance: Tensor) -> Tensor:
        """Merge mask_logits (E, N, h, w) by relevance (E, N) in 0..1 into merged logits (E, h, w)."""
        if self.mode == "fixed":
            selected = (relevance > 0.5)[..., None, None]
            return mask_logits.masked_fill(~selected, EMPTY).amax(1)
        logits = F.prelu(mask_logits, self.slope.to(mask_logits.dtype))
        return torch.bmm(relevance[:, None].to(logits.dtype), logits.flatten(2))[:, 0].unflatten(1, logits.shape[2:])


def mask_statistics(mask_logits: Tensor, relevance: Tensor, merged: Tensor, valid: Tensor | None) -> Tensor:
    """Return what masks say about "nothing here", (E, 6): maximum, mean inside, and area of the merged mask and of the
    instance masks.

    Each is a relevance-weighted mean over the instances. "Inside" is where the probability exceeds 0.5.

    Args:
        mask_logits: (E, N, h, w).
        relevance: (E, N).
        merged: (E, h, w) logits.
        valid: (E, h, w), False on padding, or None.
    """
    logits = torch.cat([merged[:, None], mask_logits], 1).float()
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None], PADDING_LOGIT)
    logits = logits.flatten(2)  # (E, 1 + N, h w)
    probs = logits.sigmoid()
    inside = (probs * (probs > 0.5)).sum(-1) / (probs > 0.5).sum(-1).clamp_min(1)
    statistics = torch.stack([logits.amax(-1) / 10, inside, probs.mean(-1)], -1)  # (E, 1 + N, 3)
    share = relevance.float() / relevance.float().sum(1, keepdim=True).clamp_min(1e-6)
    return torch.cat([statistics[:, 0], torch.bmm(share[:, None], statistics[:, 1:])[:, 0]], -1)


class NoTargetPredictor(BaseModule):
    """Predict "no target" from the relevance-weighted queries (eq. 7) and the sentence.

    Args:
        features: Input of the classifier. "concat", both, is the paper's. "sentence", "relevant" (q_avg alone), and
            "mean" (of all queries) are the other rows of Table 3c. "concat_mask" is ours: "concat" and
            `mask_statistics` of every block. A softmax over pixels or words cannot say that nothing matches; the
            product of queries with pixels can.
        normalize: Divide q_avg by the sum of relevance. Eq. 7 is a plain sum, whose size tells how much was found.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        sentence_dim: int,
        num_statistics: int = 0,
        features: NoTargetFeatures = "concat",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        both = embed_dim + sentence_dim
        widths = dict(
            concat=both, concat_mask=both + num_statistics, sentence=sentence_dim, relevant=embed_dim, mean=embed_dim
        )
        check_choice("no_target.features", features, widths)
        self.features, self.normalize = features, normalize
        self.classifier = mlp((widths[features], embed_dim, 1))

    def forward(
        self,
        query_feats: Tensor,
        relevance: Tensor,
        word_feats: Tensor,
        word_mask: Tensor,
        statistics: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict logits (E,).

        Args:
            query_feats: (E, N, C).
            relevance: (E, N).
            word_feats: (E, L, D), with word_mask (E, L).
            statistics: `mask_statistics` of each block, for "concat_mask".
        """
        inputs = list(statistics)
        if self.features in ("concat", "concat_mask", "relevant"):
            average = torch.bmm(relevance[:, None].to(query_feats.dtype), query_feats)[:, 0]  # (E, C)
            if self.normalize:
                average = average / relevance.sum(1, keepdim=True).clamp_min(1e-6)
            inputs.append(average)
        if self.features == "mean":
            inputs.append(query_feats.mean(1))
        if self.features in ("concat", "concat_mask", "sentence"):
            inputs.append(masked_mean(word_feats, word_mask))
        return self.classifier(torch.cat(inputs, -1))[:, 0]
