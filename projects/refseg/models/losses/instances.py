"""Instance supervision of object queries (InstAlign, section 11.4, eqs. 1 and 10-12): matching and losses.

Letters: B images, E expressions, R rows of the mask features (B, or E if the encoder fuses words), N queries, M the
most instances of an expression, n matched pairs, D channels of the mask features, (h, w) their size, P points or pixels
at which masks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor

from refseg.errors import check_choice
from refseg.models.layers import Groups, level_mask
from refseg.models.losses.functional import (
    PADDING_LOGIT,
    corner_points,
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
    """Weights of the instance losses (eqs. 11 and 12) and the points at which masks are compared.

    Args:
        relevance, mask, dice: Weights in matching cost and loss; Mask2Former's values.
        poa: Weight of phrase-object alignment in cost and loss. 0 gives the row "Mask2Former" of Table 3a.
        unmatched: Relevance weight of unmatched queries, relative to matched ones. The paper does not give it; this is
            Mask2Former's value.
        num_points: Points per mask; Mask2Former's 112 x 112. None compares all pixels of the mask features, which suits
            small images.
        relevance_cost: Matching cost of a relevance p: "log", -log p as in eq. 10, or "probability", Mask2Former's -p.
    """

    relevance: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    poa: float = 1.0
    unmatched: float = 0.1
    num_points: int | None = 12544
    relevance_cost: Literal["log", "probability"] = "log"

    def __post_init__(self) -> None:
        check_choice("instances.relevance_cost", self.relevance_cost, ("log", "probability"))


class BlockOutput(NamedTuple):
    """Output of one decoder block: `relevance_logits` (E, N), `mask_embeds` (E, N, D), and the POA loss of each query,
    `misalignment` (E, N), where it has a weight."""

    relevance_logits: Tensor
    mask_embeds: Tensor
    misalignment: Tensor | None = None


class Referents:
    """The instances that the expressions of a batch refer to, with the mask features that they are compared with.

    `counts`: number of referents of each expression. `index` (E, M): their indices among all instances of the batch,
    arbitrary beyond the count.

    Args:
        batch: The batch with its instance masks.
        mask_feats: (R, D, h, w).
        groups: Expressions by rows of `mask_feats`.
        align_corners: Whether corner pixels of the mask features are those of the input, as in DeRIS, instead of the
            corners of both maps.
    """

    def __init__(self, batch: Batch, mask_feats: Tensor, groups: Groups, *, align_corners: bool = False) -> None:
        self.mask_feats, self.groups, self.image_of = mask_feats, groups, batch.image_of
        self.size = (mask_feats.shape[-2], mask_feats.shape[-1])
        self.align_corners = align_corners
        self.masks = torch.cat(batch.instance_masks)  # (all instances, H, W)
        self.num_instances = [len(masks) for masks in batch.instance_masks]
        self.padding = ~level_mask(batch.pixel_mask, self.size) if batch.is_padded else None  # (B, h, w)
        # Share of the input's width and height that is image; tensor operations do not make a GPU synchronize
        height, width = batch.pixel_mask.shape[-2:]
        columns, rows = batch.pixel_mask[:, 0].sum(1), batch.pixel_mask[:, :, 0].sum(1)
        self.extent = torch.stack([columns / width, rows / height], 1)  # (B, 2)
        refers = torch.nn.utils.rnn.pad_sequence(batch.referents, batch_first=True).int()
        self.counts: list[int] = refers.sum(1).tolist()
        order = refers.argsort(dim=1, descending=True, stable=True)[:, : max(self.counts)]
        per_image = zip(order.split(batch.expression_counts), accumulate(self.num_instances, initial=0), strict=False)
        index = torch.cat([rows + first for rows, first in per_image])  # (E, M)
        self.index = index.clamp(max=max(len(self.masks) - 1, 0))

    def sample(self, num_points: int | None) -> tuple[Tensor, Tensor]:
        """Return mask features (R, D, P) and targets (E, M, P) for matching.

        They are sampled at random points, the same for all queries and instances of an image. For None they are all
        pixels, and a target is the covered share of the pixel.
        """
        if num_points is None:
            return self.mask_feats.flatten(2), self.covered()[self.index].flatten(2)
        points = random_points(self.extent, num_points)  # (B, P, 2)
        per_image = zip(self.masks.split(self.num_instances), points, strict=True)
        values = torch.cat([sample_points(masks[None].float(), at[None])[0] for masks, at in per_image])
        feats = self.mask_feats.float()
        if self.align_corners:
            points = corner_points(points, self.masks.shape[-2:], self.size)
        return sample_points(feats, points if self.groups.by_image else points[self.image_of]), values[self.index]

    def covered(self) -> Tensor:
        """Return the share of each pixel of the mask features that each instance covers: (all instances, h, w)."""
        return covered_share(self.masks, self.size)

    def pair_groups(self, limit: int) -> Groups:
        """Return matched pairs grouped by row of the mask features; an expression has at most `limit` pairs."""
        rows = [0] * len(self.groups.counts)
        for row, count in zip(self.groups.rows, self.counts, strict=True):
            rows[row] += min(count, limit)
        return Groups(rows, self.mask_feats.device)


def match(blocks: Sequence[BlockOutput], referents: Referents, weights: InstanceWeights) -> tuple[list[Pairs], Tensor]:
    """Match queries and instances for every block (eqs. 10 and 11), in fp32.

    Returns:
        The pairs of each block, and the number of non-finite costs.
    """
    with torch.no_grad(), torch.autocast(referents.mask_feats.device.type, enabled=False):
        feats, targets = referents.sample(weights.num_points)
        costs = []  # (E, N, M) each
        for block in blocks:
            logits = referents.groups.dot(block.mask_embeds.float(), feats.float())  # (E, N, P)
            if referents.padding is not None and weights.num_points is None:
                logits = logits.masked_fill(referents.padding[referents.image_of].flatten(1)[:, None], PADDING_LOGIT)
            bce, dice = pairwise_mask_costs(logits, targets)
            relevance = block.relevance_logits.float()
            cost = F.softplus(-relevance) if weights.relevance_cost == "log" else -relevance.sigmoid()
            query_cost = weights.relevance * cost
            if block.misalignment is not None:
                query_cost = query_cost + weights.poa * block.misalignment.float()
            costs.append(weights.mask * bce + weights.dice * dice + query_cost[..., None])
        cost, num_bad = finite_costs(torch.stack(costs))
        return assign(cost, referents.counts), num_bad


def relevance_loss(logits: Tensor, pairs: Pairs, unmatched: float) -> Tensor:
    """BCE of relevance logits (E, N): 1 for matched queries, 0 with weight `unmatched` for the others (eqs. 11 and 12).

    It is divided by the sum of the weights, like Mask2Former's cross-entropy.
    """
    target = torch.zeros_like(logits, dtype=torch.float32)
    target[pairs.expression, pairs.query] = 1.0
    weight = target + (1 - target) * unmatched
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="sum")
    return losses / weight.sum().clamp_min(1e-6)


def mask_losses(
    block: BlockOutput, pairs: Pairs, pair_groups: Groups, referents: Referents, num_points: int | None
) -> tuple[Tensor, Tensor]:
    """Return BCE and dice of each pair, (n,) each, at uncertain points; for None over all pixels."""
    embeds = block.mask_embeds[pairs.expression, pairs.query]  # (n, D)
    logits = pair_groups.dot(embeds[:, None], referents.mask_feats).float()  # (n, 1, h, w)
    instance = referents.index[pairs.expression, pairs.instance]  # (n,)
    image = referents.image_of[pairs.expression]
    if num_points is None:
        target = referents.covered()[instance].flatten(1)
        if referents.padding is not None:
            logits = logits.masked_fill(referents.padding[image][:, None], PADDING_LOGIT)
        logits = logits.flatten(1)
    else:
        if referents.align_corners:
            logits = F.interpolate(logits, size=referents.masks.shape[-2:], mode="bilinear", align_corners=True)
        points = uncertain_points(logits.detach(), referents.extent[image], num_points)
        target = sample_points(referents.masks[instance][:, None].float(), points)[:, 0]
        logits = sample_points(logits, points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return bce, dice_per_map(logits, target)


def instance_losses(
    blocks: Sequence[BlockOutput], referents: Referents, weights: InstanceWeights
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of eq. 12 by name, averaged over the blocks, and the number of non-finite costs.

    Losses of pairs are divided by the mean number of pairs per process. If no expression refers to anything, only
    relevance has a loss; the others are 0 with zero gradients.
    """
    # Match
    if max(referents.counts):
        matched, num_bad = match(blocks, referents, weights)
    else:
        none = torch.zeros(0, dtype=torch.long, device=referents.mask_feats.device)
        matched, num_bad = [Pairs(none, none, none)] * len(blocks), none.sum().float()
    # Count pairs, averaged over processes
    num_pairs = torch.full((), float(len(matched[0].query)), device=referents.mask_feats.device)
    all_reduce(num_pairs, op="mean")
    num_pairs = num_pairs.clamp_min(1.0)
    # Sum the losses of all blocks
    pair_groups = referents.pair_groups(blocks[0].mask_embeds.shape[1])
    sums: dict[str, Tensor] = {}
    for block, pairs in zip(blocks, matched, strict=True):
        if len(pairs.query):
            bce, dice = mask_losses(block, pairs, pair_groups, referents, weights.num_points)
            pair_losses = dict(instance_mask=bce, instance_dice=dice)
        else:
            zero = block.mask_embeds.sum() * 0 + referents.mask_feats.sum() * 0
            pair_losses = dict(instance_mask=zero, instance_dice=zero)
        if block.misalignment is not None:
            pair_losses["poa"] = block.misalignment[pairs.expression, pairs.query].float()
        losses = {name: value.sum() / num_pairs for name, value in pair_losses.items()}
        losses["relevance"] = relevance_loss(block.relevance_logits, pairs, weights.unmatched)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value / len(blocks)
    factors = dict(relevance=weights.relevance, instance_mask=weights.mask, instance_dice=weights.dice, poa=weights.poa)
    return {f"loss_{name}": factors[name] * value for name, value in sums.items() if factors[name]}, num_bad
