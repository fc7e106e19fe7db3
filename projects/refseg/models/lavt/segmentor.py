"""LAVT (Yang et al., CVPR 2022): words are fused inside the vision encoder; a small decoder does the rest."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.lavt.decoder import LAVTDecoder
from refseg.models.losses import weighted_bce_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


@MODELS.register_module()
class LAVT(RefSegmentor):
    """`encoder`: a `FusedEncoder` with `PWAM`. Loss: cross-entropy of background and referent at the input's size.

    The two scores of a pixel matter by their difference only, which is the mask logit; cross-entropy of the two is
    binary cross-entropy of it. `class_weights`: of background and referent (published code; the paper names none).
    Logits leave the model at the input's size, since their interpolation, with aligned corners, is what was trained.
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
        self.encoder = MODELS.build(encoder)
        if not self.encoder.fused_stages:
            raise ConfigError("LAVT reads words inside its encoder only: model.encoder.fusion must not be None")
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
