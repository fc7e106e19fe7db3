"""Losses of mask logits, and sampling of masks at points. Pure functions.

Letters: E expressions (or matched pairs), R maps, C channels, P points, (h, w) the size of a map. Points are (x, y) in
0..1 over a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.structures import Batch

PADDING_LOGIT = -30.0  # replaces logits on padding; its probability is 0 in every sum


def covered_share(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bool masks (n, H, W) to the covered share of each pixel: (n, h, w) in 0..1."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), size)[:, 0]


def mask_bce_loss(mask_logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy over all pixels of all maps, or over the `valid` ones; 0 if there are none.

    Args:
        mask_logits: (E, ...).
        target: Same shape, bool or floats in 0..1.
        valid: Same shape, bool, False on padding.
    """
    return weighted_bce_loss(mask_logits, target, (1.0, 1.0), valid)


def weighted_bce_loss(
    mask_logits: Tensor, target: Tensor, class_weights: tuple[float, float], valid: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy with class weights for pixels outside and inside the mask; 0 if there are no pixels.

    It is divided by the sum of the weights, like two-class cross-entropy with class weights.
    """
    if mask_logits.numel() == 0:
        return mask_logits.sum()
    if mask_logits.dtype in (torch.float16, torch.bfloat16):  # sums over pixels overflow
        mask_logits = mask_logits.float()
    outside, inside = class_weights
    target = target.to(mask_logits.dtype)
    weight = target * (inside - outside) + outside
    if valid is not None:
        weight = weight * valid
    losses = F.binary_cross_entropy_with_logits(mask_logits, target, weight, reduction="sum")
    return losses / weight.sum().clamp_min(1e-6)


def dice_per_map(mask_logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Mask2Former's dice loss of each map, (E,): 1 - (2 |P G| + s) / (|P| + |G| + s), probabilities not squared."""
    probs = mask_logits.float().sigmoid().flatten(1)
    target = target.flatten(1).to(probs.dtype)
    overlap = 2 * (probs * target).sum(1) + smooth
    return 1 - overlap / (probs.sum(1) + target.sum(1) + smooth)


def merged_dice_loss(mask_logits: Tensor, target: Tensor, batch: Batch, valid: Tensor | None) -> Tensor:
    """Mean dice of merged masks, (E, h, w) each, over the expressions of the batch that refer to something; 0 without.

    The others have weight 0. Indexing would make a GPU synchronize.
    """
    present = ~batch.no_target()
    inside = mask_logits if valid is None else mask_logits.masked_fill(~valid, PADDING_LOGIT)
    return (dice_per_map(inside, target) * present).sum() / present.sum().clamp_min(1)


def merged_mask_losses(mask_logits: Tensor, masks: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """BCE and dice of mask logits (E, h, w) against merged masks (E, H, W), at the size of the masks, without padding.

    Dice is over the expressions that refer to something.
    """
    valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
    size = (masks.shape[-2], masks.shape[-1])
    logits = F.interpolate(mask_logits[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    return mask_bce_loss(logits, masks, valid), merged_dice_loss(logits, masks, batch, valid)


# Points instead of pixels (PointRend, Kirillov et al. 2020; Mask2Former, section 3.3) ---------------------------------


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (R, C, h, w) bilinearly at points (R, P, 2): (R, C, P)."""
    return F.grid_sample(maps, points[:, :, None] * 2 - 1, mode="bilinear", align_corners=False)[..., 0]


def corner_points(points: Tensor, size: Sequence[int], map_size: Sequence[int]) -> Tensor:
    """Move points (R, P, 2) of an input of (H, W) to where they are in a map of (h, w) whose corner pixels are the
    input's, as if the map was resized to the input with aligned corners before it is sampled."""
    pixels, cells = (points.new_tensor([whole[1], whole[0]]) for whole in (size, map_size))
    return ((points * pixels - 0.5) * ((cells - 1) / (pixels - 1)) + 0.5) / cells


def random_points(extent: Tensor, num_points: int) -> Tensor:
    """Draw uniform points (R, P, 2) on the image; extent (R, 2) is its width and height as a share of each map."""
    return torch.rand(len(extent), num_points, 2, device=extent.device) * extent[:, None]


def uncertain_points(
    mask_logits: Tensor, extent: Tensor, num_points: int, *, oversample: float = 3.0, share: float = 0.75
) -> Tensor:
    """Draw points (R, P, 2), most of them where the mask is uncertain.

    A `share` of the points are those whose logits (R, 1, h, w) are closest to 0, among `oversample` times as many
    random ones. The rest are random.
    """
    candidates = random_points(extent, int(num_points * oversample))
    uncertainty = -sample_points(mask_logits, candidates)[:, 0].abs()
    chosen = uncertainty.topk(int(num_points * share), 1).indices
    rest = random_points(extent, num_points - chosen.shape[1])
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), rest], 1)
