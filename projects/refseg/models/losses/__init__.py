"""Loss functions: pure functions of tensors, tested on values computed by hand."""

from refseg.models.losses.functional import (
    covered_share,
    dice_per_map,
    mask_bce_loss,
    merged_dice_loss,
    merged_mask_losses,
    weighted_bce_loss,
)
from refseg.models.losses.instances import BlockOutput, InstanceWeights, Referents, instance_losses

__all__ = [
    "BlockOutput",
    "InstanceWeights",
    "Referents",
    "covered_share",
    "dice_per_map",
    "instance_losses",
    "mask_bce_loss",
    "merged_dice_loss",
    "merged_mask_losses",
    "weighted_bce_loss",
]
