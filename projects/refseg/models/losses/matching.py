"""Matching of queries and instances: pairwise costs (InstAlign, eq. 1) and the Hungarian assignment.

Costs of all expressions and all decoder blocks are one tensor and leave the device once. mmdet's assigner and costs
handle one expression at a time and give the same numbers (tests/models/test_matching.py).

Letters: E expressions, N queries, M the most instances of an expression, P points (or pixels) at which masks are
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Matched pairs, (n,) each: query `query[i]` and instance `instance[i]` of expression `expression[i]`."""

    expression: Tensor
    query: Tensor
    instance: Tensor


def pairwise_mask_costs(mask_logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return mean binary cross-entropy and Mask2Former's dice loss of every pair, (E, N, M) each.

    Call it without autocast: in half precision, sums over points overflow and good pairs get equal costs.

    Args:
        mask_logits: (E, N, P).
        target: (E, M, P) in 0..1.
        smooth: Added to numerator and denominator of dice.
    """
    # BCE(m, t) = softplus(m) - m t, with softplus(m) = max(m, 0) - log(max(s, 1 - s)) and s = sigmoid(m), which dice
    # needs anyway. PyTorch's softplus is 15 times as slow as its sigmoid on CPU.
    probs, target = mask_logits.sigmoid(), target.transpose(1, 2)
    softplus = mask_logits.clamp_min(0) - torch.maximum(probs, 1 - probs).log()
    bce = (softplus.sum(-1, keepdim=True) - torch.bmm(mask_logits, target)) / mask_logits.shape[-1]
    overlap = 2 * torch.bmm(probs, target) + smooth
    return bce, 1 - overlap / (probs.sum(-1, keepdim=True) + target.sum(1)[:, None] + smooth)


def finite_costs(cost: Tensor, *, worst: float = 1e6) -> tuple[Tensor, Tensor]:
    """Replace NaN and infinity by `worst`, which is above every real cost. Also return the number of replacements."""
    bad = ~cost.isfinite()
    return cost.masked_fill(bad, worst), bad.sum().float()


def assign(cost: Tensor, num_instances: Sequence[int]) -> list[Pairs]:
    """Return the pairs of the Hungarian assignment for every block, on the device of the costs.

    With more instances than queries, the most expensive instances stay unmatched.

    Args:
        cost: (blocks, E, N, M).
        num_instances: Number of instances of each expression; costs beyond it are ignored.
    """
    from scipy.optimize import linear_sum_assignment

    rows: list[tuple[int, int, int]] = []
    for block in cost.detach().float().cpu().numpy():
        for expression, (costs, count) in enumerate(zip(block, num_instances, strict=True)):
            if count:
                pairs = zip(*linear_sum_assignment(costs[:, :count]), strict=True)
                rows += [(expression, int(query), int(instance)) for query, instance in pairs]
    # Every block has the same number of pairs, so all of them go to the device as one tensor
    table = torch.tensor(rows, dtype=torch.long).reshape(len(cost), -1, 3).to(cost.device)
    return [Pairs(*block.unbind(1)) for block in table]
