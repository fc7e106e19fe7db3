"""LGFormer (Wei et al., 2022, "Linguistic Query-Guided Mask Generation for Referring Image Segmentation").

Letters: E expressions, N queries, C channels, (h, w) the size of the mask features.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from refseg.errors import check_at_least, with_sizes
from refseg.models.layers import level_mask
from refseg.models.lgformer.pixel_decoder import LanguageGuidedPixelDecoder
from refseg.models.lgformer.prototype import MaskMerge, PrototypeGenerator, dot_products
from refseg.models.losses import covered_share, mask_bce_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


@MODELS.register_module()
class LGFormer(RefSegmentor):
    """Mask logits are dot products of pixels with a prototype, which starts from the words and attends to pixels.

    Loss (eqs. 12 and 13): binary cross-entropy of the dot products at stride 4. A pixel's label is 1 if at least half
    of its area is mask; the paper only says that labels are 0 or 1.

    Args:
        encoder: Any encoder that returns levels, fine to coarse, and words, with `level_dims` and `word_dim`. The
            paper's is a `FusedEncoder` with `VLBA`; Table 4 has `PWAM`. Its `out_stages` have strides 8, 16 and 32;
            with `pixel_decoder.lateral` also stride 4.
        pixel_decoder: Arguments of `LanguageGuidedPixelDecoder`, without sizes.
        prototype: Arguments of `PrototypeGenerator`, without sizes.
        embed_dim: Channels of the decoder.
        merge_dim: Width of the MLP that merges the masks of several queries; the paper does not give it.
    """

    config_groups: ClassVar[dict[str, type]] = {
        **RefSegmentor.config_groups,
        "pixel_decoder": LanguageGuidedPixelDecoder,
        "prototype": PrototypeGenerator,
    }

    def __init__(
        self,
        *,
        encoder: dict,
        pixel_decoder: dict | None = None,
        prototype: dict | None = None,
        embed_dim: int = 256,
        merge_dim: int = 64,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        self.encoder = self.build_encoder(encoder)
        sizes = dict(word_dim=self.encoder.word_dim, embed_dim=embed_dim)
        self.pixel_decoder = LanguageGuidedPixelDecoder(
            **with_sizes("pixel_decoder", pixel_decoder, **sizes, level_dims=self.encoder.level_dims)
        )
        self.prototype = PrototypeGenerator(**with_sizes("prototype", prototype, **sizes))
        check_at_least("merge_dim", merge_dim, 1)
        several = self.prototype.num_queries > 1
        self.merge = MaskMerge(self.prototype.num_queries, merge_dim) if several else None

    def infer(self, batch: Batch) -> Prediction:
        # Encode; one row per expression
        features, text = self.encoder(batch)
        word_feats, word_mask = text.per_expression()  # (E, L, D), (E, L)
        features = features.per_expression()
        # Decode pixels, generate prototypes
        padded = batch.is_padded
        decoded = self.pixel_decoder(features, word_feats, word_mask, padded=padded)
        prototypes = self.prototype(decoded, word_feats, word_mask, padded=padded)  # (E, N, C)
        # Mask logits at stride 4: interpolating the product equals interpolating the features, with fewer channels
        logits = dot_products(prototypes, decoded.mask_feats)  # (E, N, h, w)
        size = [side // 4 for side in batch.images.shape[-2:]]
        if list(logits.shape[-2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.merge is not None:
            logits = self.merge(logits)
        return Prediction(logits[:, 0])

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        size = (prediction.mask_logits.shape[-2], prediction.mask_logits.shape[-1])
        covered = covered_share(batch.merged_masks(), size)
        valid = level_mask(batch.pixel_mask, size)[batch.image_of] if batch.is_padded else None
        return {"loss_mask": mask_bce_loss(prediction.mask_logits, covered >= 0.5, valid)}
