"""LAVT (Yang et al., CVPR 2022): words are fused inside the vision encoder, followed by a small decoder.

Letters: E expressions, (h, w) the size of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.layers import JoinLevels
from refseg.models.losses import weighted_bce_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


class LAVTDecoder(BaseModule):
    """Upsample from coarse to fine, joining one level per step (section 3.4, eqs. 9 and 10).

    All steps have the same width, half of the coarsest level's channels, as in the published code.

    Args:
        level_dims: Channels of the levels, fine to coarse.
    """

    def __init__(self, level_dims: Sequence[int]) -> None:
        super().__init__()
        hidden = level_dims[-1] // 2
        inputs = [level_dims[-1], *[hidden] * (len(level_dims) - 2)]
        self.steps = nn.ModuleList(
            JoinLevels(coarse, fine, hidden, align_corners=True)
            for coarse, fine in zip(inputs, reversed(level_dims[:-1]), strict=True)
        )
        self.classify = nn.Conv2d(hidden, 2, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (E, C_i, h_i, w_i), fine to coarse -> scores (E, 2, h, w) of background and referent."""
        x = levels[-1]
        for step, fine in zip(self.steps, reversed(levels[:-1]), strict=True):
            x = step(x, fine)
        return self.classify(x)


@MODELS.register_module()
class LAVT(RefSegmentor):
    """LAVT. Loss: cross-entropy of background and referent at the input's size.

    The difference of a pixel's two scores is its mask logit. Two-class cross-entropy of the scores is binary
    cross-entropy of the logit. Logits are returned at the input's size, because training interpolates them with aligned
    corners.

    Args:
        encoder: A `FusedEncoder` with `PWAM`.
        class_weights: Weights of background and referent, from the published code; the paper names none.
    """

    def __init__(
        self,
        *,
        encoder: dict,
        class_weights: tuple[float, float] = (0.9, 1.1),
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        background, referent = class_weights
        self.class_weights = (background, referent)
        self.encoder = self.build_encoder(encoder)
        if not self.encoder.fused_stages:
            raise ConfigError(
                "LAVT reads words only inside its encoder. Set model.encoder.fusion, for example to dict(type='PWAM')."
            )
        self.decoder = LAVTDecoder(self.encoder.level_dims)

    def infer(self, batch: Batch) -> Prediction:
        features, _ = self.encoder(batch)
        background, referent = self.decoder(features.levels).unbind(1)  # (E, h, w) each
        logits = (referent - background)[:, None]
        size = batch.images.shape[-2:]
        return Prediction(F.interpolate(logits, size=size, mode="bilinear", align_corners=True)[:, 0])

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
        return {"loss_mask": weighted_bce_loss(prediction.mask_logits, batch.merged_masks(), self.class_weights, valid)}
