"""Pairs of queries and instances: what each pair costs (InstAlign, eq. 1), and which pairs cost least together.

Costs of all expressions, and of all blocks of a decoder, are made as one tensor and leave the device once; mmdet's
assigner and costs work through one expression at a time. The numbers are the same (tests/models/test_matching.py).

Letters: E expressions, N queries, M the most instances of an expression, P points (or pixels) at which masks are
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """(n,) each: pair i is query `query[i]` of expression `expression[i]` and that expression's instance
    `instance[i]`."""

    expression: Tensor
    query: Tensor
    instance: Tensor


def pairwise_mask_costs(mask_logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mask logits (E, N, P) and targets (E, M, P) in 0..1 -> of each pair, (E, N, M), the mean binary cross-entropy and
    Mask2Former's dice loss.

    Not under autocast: in half precision sums over points overflow, and good pairs cannot be told apart.

    BCE(m, t) = softplus(m) - m t, and softplus(m) = max(m, 0) - log(max(s, 1 - s)) with s = sigmoid(m), which dice
    needs anyway; PyTorch's softplus takes 15 times as long as its sigmoid on a CPU.
    """
    probs, target = mask_logits.sigmoid(), target.transpose(1, 2)
    softplus = mask_logits.clamp_min(0) - torch.maximum(probs, 1 - probs).log()
    bce = (softplus.sum(-1, keepdim=True) - torch.bmm(mask_logits, target)) / mask_logits.shape[-1]
    overlap = 2 * torch.bmm(probs, target) + smooth
    return bce, 1 - overlap / (probs.sum(-1, keepdim=True) + target.sum(1)[:, None] + smooth)


def finite_costs(cost: Tensor, *, worst: float = 1e6) -> tuple[Tensor, Tensor]:
    """Costs with NaN and infinity replaced by `worst`, which no true cost reaches, and how many there were."""
    bad = ~cost.isfinite()
    return cost.masked_fill(bad, worst), bad.sum().float()


def assign(cost: Tensor, num_instances: Sequence[int]) -> list[Pairs]:
    """Costs (blocks, E, N, M), of which expression e has num_instances[e] instances -> for every block the pairs of the
    Hungarian assignment, on the device of the costs. Where instances outnumber queries, the costliest are left out."""
    from scipy.optimize import linear_sum_assignment

    table = cost.detach().float().cpu().numpy()
    blocks = []
    for block in table:
        rows: list[tuple[int, int, int]] = []
        for expression, (costs, count) in enumerate(zip(block, num_instances, strict=True)):
            if count:
                pairs = zip(*linear_sum_assignment(costs[:, :count]), strict=True)
                rows += [(expression, int(query), int(instance)) for query, instance in pairs]
        table_of_pairs = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).to(cost.device)
        blocks.append(Pairs(*table_of_pairs.unbind(1)))
    return blocks
