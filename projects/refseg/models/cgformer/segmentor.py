"""CGFormer (Tang et al., CVPR 2023, "Contrastive Grouping with Transformer for Referring Image Segmentation").

Letters: E expressions, L words, D channels of words, (h, w) the size of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError, with_sizes
from refseg.models.cgformer.decoder import GroupingDecoder
from refseg.models.layers import level_mask
from refseg.models.losses import mask_bce_loss, merged_dice_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


@MODELS.register_module()
class CGFormer(RefSegmentor):
    """Query tokens compete for the pixels of each level; the last token becomes the kernel of the mask.

    Loss: binary cross-entropy and dice of the mask at the input's size, and dice of the last token's pixels at each
    level, which contrasts it with the other tokens. The published code has no other contrastive loss. As there, the
    groups (1 for a pixel of the token, 0 for others) are taken for logits, and a level's label is the first pixel of
    each cell.

    Args:
        encoder: Any encoder that returns levels, fine to coarse, and words. The paper's is a `FusedEncoder` of four
            stages with `PWAM` of 8 heads.
        decoder: Arguments of `GroupingDecoder`, without sizes.
        grouping_weights: Weight of the dice loss of each grouping, coarse to fine, from the published code.
    """

    config_groups: ClassVar[dict[str, type]] = {**RefSegmentor.config_groups, "decoder": GroupingDecoder}

    def __init__(
        self,
        *,
        encoder: dict,
        decoder: dict | None = None,
        grouping_weights: Sequence[float] = (0.001, 0.01, 0.1),
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        self.encoder = self.build_encoder(encoder)
        sizes = dict(level_dims=self.encoder.level_dims, word_dim=self.encoder.word_dim)
        self.decoder = GroupingDecoder(**with_sizes("decoder", decoder, **sizes))
        self.grouping_weights = tuple(grouping_weights)
        if len(self.grouping_weights) != len(self.decoder.joins):
            raise ConfigError(
                f"grouping_weights has {len(self.grouping_weights)} weights, but there are {len(self.decoder.joins)} "
                "groupings: one for each of encoder.out_stages except the coarsest."
            )

    def infer(self, batch: Batch) -> Prediction:
        # Encode; one row per expression
        features, text = self.encoder(batch)
        words, word_mask = text.per_expression()  # (E, L, D), (E, L)
        # Group pixels, make the mask
        logits, groups = self.decoder(features.per_expression(), words, word_mask, padded=batch.is_padded)
        size = batch.images.shape[-2:]
        logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        return Prediction(logits, auxiliary=groups)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        masks = batch.merged_masks()  # (E, H, W)
        valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
        logits: Tensor = prediction.mask_logits
        losses = {
            "loss_mask": mask_bce_loss(logits, masks, valid),
            "loss_dice": merged_dice_loss(logits, masks, batch, valid),
            "loss_grouping": logits.new_zeros(()),
        }
        for weight, groups in zip(self.grouping_weights, prediction.auxiliary, strict=True):
            size = (groups.shape[-2], groups.shape[-1])
            inside = None if valid is None else level_mask(valid, size)
            dice = merged_dice_loss(groups, level_mask(masks, size), batch, inside)
            losses["loss_grouping"] = losses["loss_grouping"] + weight * dice
        return losses
