"""Phrase-object alignment (InstAlign, section 3.2, eqs. 2 to 4). In fp32: cosines near 1 need it.

Letters: E expressions, N queries, L words, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
