"""Pure losses on mask logits. E expressions (or matched pairs); every other dimension is flattened."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.structures import Batch


def covered_share(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, H, W) bool -> (n, h, w): the share of each pixel of `size` that is covered."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), size)[:, 0]


def mask_bce_loss(mask_logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy over all pixels of all E maps, or over the `valid` ones; 0 when there is none.
    `target`: floats in 0..1; `valid`: bool, False on padding."""
    return weighted_bce_loss(mask_logits, target, (1.0, 1.0), valid)


def weighted_bce_loss(
    mask_logits: Tensor, target: Tensor, class_weights: tuple[float, float], valid: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy with a weight for pixels outside and one for pixels inside the mask, divided by the sum of
    the pixels' weights, as two-class cross-entropy with class weights is; 0 when there is no pixel."""
    if mask_logits.numel() == 0:
        return mask_logits.sum()
    if mask_logits.dtype in (torch.float16, torch.bfloat16):  # sums of pixels do not fit
        mask_logits = mask_logits.float()
    outside, inside = class_weights
    target = target.to(mask_logits.dtype)
    weight = target * (inside - outside) + outside
    if valid is not None:
        weight = weight * valid
    losses = F.binary_cross_entropy_with_logits(mask_logits, target, weight, reduction="sum")
    return losses / weight.sum().clamp_min(1e-6)


def dice_loss(mask_logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Mean of `dice_per_map`; 0 when there is no map."""
    if mask_logits.numel() == 0:
        return mask_logits.sum()
    return dice_per_map(mask_logits, target, smooth=smooth).mean()


def dice_per_map(mask_logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Mask2Former's dice (probabilities not squared) of each map, (E,): 1 - (2 |P G| + s) / (|P| + |G| + s)."""
    probs = mask_logits.float().sigmoid().flatten(1)
    target = target.flatten(1).to(probs.dtype)
    overlap = 2 * (probs * target).sum(1) + smooth
    return 1 - overlap / (probs.sum(1) + target.sum(1) + smooth)


def merged_mask_losses(mask_logits: Tensor, masks: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """BCE and dice of logits (E, h, w), interpolated to the size of the batch's merged masks (E, H, W), without
    padding. Dice is of the expressions that refer to something."""
    valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
    size = (masks.shape[-2], masks.shape[-1])
    logits = F.interpolate(mask_logits[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    bce = mask_bce_loss(logits, masks, valid)
    present = ~batch.no_target()
    inside = logits if valid is None else logits.masked_fill(~valid, -30.0)
    return bce, dice_loss(inside[present], masks[present])


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (R, C, h, w) read bilinearly at points (R, P, 2) -> (R, C, P)."""
    return F.grid_sample(maps, points[:, :, None] * 2 - 1, mode="bilinear", align_corners=False)[..., 0]


def random_points(extent: Tensor, num_points: int) -> Tensor:
    """(R, P, 2), uniform over the part of each map that is image: extent (R, 2), its width and height in 0..1."""
    return torch.rand(len(extent), num_points, 2, device=extent.device) * extent[:, None]


def uncertain_points(
    mask_logits: Tensor, extent: Tensor, num_points: int, *, oversample: float = 3.0, share: float = 0.75
) -> Tensor:
    """(R, P, 2): a `share` of the points are, among `oversample` times as many random ones, those where the logits
    (R, 1, h, w) are nearest to 0; the rest are random."""
    candidates = random_points(extent, int(num_points * oversample))
    uncertainty = -sample_points(mask_logits, candidates)[:, 0].abs()
    chosen = uncertainty.topk(int(num_points * share), 1).indices
    rest = random_points(extent, num_points - chosen.shape[1])
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), rest], 1)
