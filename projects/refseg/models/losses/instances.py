"""Instance supervision of object queries (InstAlign, section 11.4, eqs. 1 and 10-12): matching and losses.

Letters: B images, E expressions, R rows of the mask features (B, or E where words were fused before), N queries, M the
most instances of an expression, n matched pairs, D channels of mask features, (h, w) their size, P points or pixels at
which masks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor

from refseg.models.layers import Groups, level_mask
from refseg.models.losses.functional import (
    covered_share,
    dice_per_map,
    random_points,
    sample_points,
    uncertain_points,
)
from refseg.models.losses.matching import Pairs, assign, finite_costs, pairwise_mask_costs
from refseg.structures import Batch


@dataclass(frozen=True, slots=True)
class InstanceWeights:
    """Weights of eqs. 11 and 12, and where masks are compared.

    `relevance`, `mask`, `dice`: Mask2Former's. `poa`: the paper's l_poa, in cost and loss; 0 is "Mask2Former" in Table
    3a. `unmatched`: of unmatched queries beside matched ones; Mask2Former's, the paper does not say. `num_points`:
    Mask2Former's 112 x 112; None is all pixels of the mask features, which is more than enough for small images.
    """

    relevance: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    poa: float = 1.0
    unmatched: float = 0.1
    num_points: int | None = 12544


class BlockOutput(NamedTuple):
    """Of one block: `relevance_logits` (E, N), `mask_embeds` (E, N, D), `misalignment` (E, N): POA of each query."""

    relevance_logits: Tensor
    mask_embeds: Tensor
    misalignment: Tensor


class Referents:
    """The instances that a batch's expressions refer to, and the features of which queries make masks.

    `counts`: how many, per expression. `index` (E, M): which of all instances of the batch; anything beyond the count.
    """

    def __init__(self, batch: Batch, mask_feats: Tensor, groups: Groups) -> None:
        """mask_feats (R, D, h, w); `groups` of expressions by its rows."""
        device = mask_feats.device
        self.mask_feats, self.groups, self.image_of = mask_feats, groups, batch.image_of
        self.size = (mask_feats.shape[-2], mask_feats.shape[-1])
        self.masks = torch.cat(batch.instance_masks)  # (all instances, H, W)
        self.num_instances = [len(masks) for masks in batch.instance_masks]
        self.padding = ~level_mask(batch.pixel_mask, self.size) if batch.is_padded else None  # (B, h, w)
        height, width = batch.images.shape[-2:]
        content = [(meta.content_size[1] / width, meta.content_size[0] / height) for meta in batch.metas]
        self.extent = torch.tensor(content, device=device)  # (B, 2)
        refers = torch.nn.utils.rnn.pad_sequence(batch.referents, batch_first=True).int()
        self.counts: list[int] = refers.sum(1).tolist()
        order = refers.argsort(dim=1, descending=True, stable=True)[:, : max(self.counts)]
        first = torch.tensor([0, *self.num_instances[:-1]], device=device).cumsum(0)  # (B,)
        self.index = (order + first[self.image_of, None]).clamp(max=max(len(self.masks) - 1, 0))

    @property
    def most(self) -> int:
        return max(self.counts)

    def compared(self, num_points: int | None) -> tuple[Tensor, Tensor]:
        """For matching: mask features (R, D, P) and targets (E, M, P) at random points, the same for all queries and
        instances of an image; or, for None, at all pixels, where a target is the share of the pixel that is covered."""
        if num_points is None:
            covered = self.covered()
            return self.mask_feats.flatten(2), covered[self.index].flatten(2)
        points = random_points(self.extent, num_points)  # (B, P, 2)
        per_image = zip(self.masks.split(self.num_instances), points, strict=True)
        values = torch.cat([sample_points(masks[None].float(), at[None])[0] for masks, at in per_image])
        feats = self.mask_feats.float()
        return sample_points(feats, points if self.groups.by_image else points[self.image_of]), values[self.index]

    def covered(self) -> Tensor:
        """(all instances, h, w): the share of each pixel of the mask features that an instance covers."""
        return covered_share(self.masks, self.size)

    def pair_groups(self, limit: int) -> Groups:
        """Pairs by row of the mask features, if every expression has at most `limit` of them."""
        rows = [0] * len(self.groups.counts)
        for row, count in zip(self.groups.rows, self.counts, strict=True):
            rows[row] += min(count, limit)
        return Groups(rows, self.mask_feats.device)


def match(blocks: Sequence[BlockOutput], referents: Referents, weights: InstanceWeights) -> tuple[list[Pairs], Tensor]:
    """Eq. 10, for every block: the pairs of least cost (eq. 11); and the number of costs that were not finite.
    In fp32."""
    with torch.no_grad(), torch.autocast(referents.mask_feats.device.type, enabled=False):
        feats, targets = referents.compared(weights.num_points)
        costs = []
        for block in blocks:
            logits = referents.groups.dot(block.mask_embeds.float(), feats.float())  # (E, N, P)
            if referents.padding is not None and weights.num_points is None:
                logits = logits.masked_fill(referents.padding[referents.image_of].flatten(1)[:, None], -30.0)
            bce, dice = pairwise_mask_costs(logits, targets)
            of_query = weights.relevance * F.softplus(-block.relevance_logits.float())
            if weights.poa:
                of_query = of_query + weights.poa * block.misalignment.float()
            costs.append(weights.mask * bce + weights.dice * dice + of_query[..., None])
        cost, num_bad = finite_costs(torch.stack(costs))
        return assign(cost, referents.counts), num_bad


def relevance_loss(logits: Tensor, pairs: Pairs, unmatched: float) -> Tensor:
    """Eq. 11 and 12: BCE of relevance logits (E, N) against 1 for matched queries and 0, with the weight `unmatched`,
    for the others; divided by the sum of weights, as Mask2Former's cross-entropy is."""
    target = torch.zeros_like(logits, dtype=torch.float32)
    target[pairs.expression, pairs.query] = 1.0
    weight = target + (1 - target) * unmatched
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="sum")
    return losses / weight.sum().clamp_min(1e-6)


def mask_losses(
    block: BlockOutput, pairs: Pairs, pair_groups: Groups, referents: Referents, num_points: int | None
) -> tuple[Tensor, Tensor]:
    """BCE and dice of each pair, (n,) each, at uncertain points, or over all pixels for None."""
    embeds = block.mask_embeds[pairs.expression, pairs.query]  # (n, D)
    logits = pair_groups.dot(embeds[:, None], referents.mask_feats).float()  # (n, 1, h, w)
    instance = referents.index[pairs.expression, pairs.instance]  # (n,)
    image = referents.image_of[pairs.expression]
    if num_points is None:
        target = referents.covered()[instance].flatten(1)
        if referents.padding is not None:
            logits = logits.masked_fill(referents.padding[image][:, None], -30.0)
        logits = logits.flatten(1)
    else:
        points = uncertain_points(logits.detach(), referents.extent[image], num_points)
        target = sample_points(referents.masks[instance][:, None].float(), points)[:, 0]
        logits = sample_points(logits, points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return bce, dice_per_map(logits, target)


def instance_losses(
    blocks: Sequence[BlockOutput], referents: Referents, weights: InstanceWeights
) -> tuple[dict[str, Tensor], Tensor]:
    """Eq. 12, mean over the blocks, by name; and the number of costs that were not finite.

    Losses of pairs are divided by the number of pairs of all processes, per process. Where nothing is referred to, only
    the relevance has a loss, and the others are 0 with a gradient of 0.
    """
    if referents.most:
        matched, num_bad = match(blocks, referents, weights)
    else:
        none = torch.zeros(0, dtype=torch.long, device=referents.mask_feats.device)
        matched, num_bad = [Pairs(none, none, none)] * len(blocks), none.sum().float()
    number = torch.tensor(float(len(matched[0].query)), device=referents.mask_feats.device)
    all_reduce(number, op="mean")
    number = number.clamp_min(1.0)
    pair_groups = referents.pair_groups(blocks[0].mask_embeds.shape[1])
    sums: dict[str, Tensor] = {}
    for block, pairs in zip(blocks, matched, strict=True):
        if len(pairs.query):
            bce, dice = mask_losses(block, pairs, pair_groups, referents, weights.num_points)
            of_pairs = dict(
                instance_mask=bce,
                instance_dice=dice,
                poa=block.misalignment[pairs.expression, pairs.query].float(),
            )
        else:
            nothing = block.mask_embeds.sum() * 0 + referents.mask_feats.sum() * 0
            of_pairs = dict(instance_mask=nothing, instance_dice=nothing, poa=block.misalignment.sum() * 0)
        losses = {name: value.sum() / number for name, value in of_pairs.items()}
        losses["relevance"] = relevance_loss(block.relevance_logits, pairs, weights.unmatched)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value / len(blocks)
    factors = dict(relevance=weights.relevance, instance_mask=weights.mask, instance_dice=weights.dice, poa=weights.poa)
    return {f"loss_{name}": factors[name] * value for name, value in sums.items() if factors[name]}, num_bad
