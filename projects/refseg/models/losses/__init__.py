"""Loss functions: pure functions of tensors, tested on values computed by hand."""

from refseg.models.losses.functional import dice_loss, mask_bce_loss, weighted_bce_loss

__all__ = ["dice_loss", "mask_bce_loss", "weighted_bce_loss"]
