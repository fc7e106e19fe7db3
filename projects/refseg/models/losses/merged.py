"""Losses of merged masks at the input's size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refseg.models.losses.functional import dice_loss, mask_bce_loss
from refseg.structures import Batch


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
