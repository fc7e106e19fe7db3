"""InstAlign ("Phrase-Instance Alignment for Generalized Referring Segmentation").

Letters: B images, E expressions, R rows of the mask features (B, or E if the encoder fuses words), N queries, L words,
C channels, D channels of the mask features, (h, w) their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from refseg.models.instalign.heads import (
    Aggregation,
    InstanceAggregation,
    NoTargetPredictor,
    misalignment,
    word_attention,
)
from refseg.models.layers import Groups, PixelFeatures, QueryHeads, level_mask
from refseg.models.losses import (
    BlockOutput,
    InstanceWeights,
    Referents,
    covered_share,
    instance_losses,
    mask_bce_loss,
    merged_dice_loss,
)
from refseg.models.query_segmentor import QuerySegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, InstancePrediction, Prediction


@dataclass(slots=True)
class DecoderOutputs:
    """Inputs of the instance losses: outputs of all blocks, `mask_feats` (R, D, h, w), expressions by their rows."""

    blocks: list[BlockOutput]
    mask_feats: Tensor
    groups: Groups


@MODELS.register_module()
class InstAlign(QuerySegmentor):
    """Text-conditioned object queries with a mask and a relevance each, merged into one mask and a no-target score.

    Loss (eq. 8): instance_weight L_inst + merged_weight L_merged + no_target_weight L_nt.

    Args:
        encoder: A `FusedEncoder` of four stages; the paper's has no fusion.
        decoder: Type and arguments of the query decoder, without sizes: `ObjectTextDecoder`, or ReLA's `RegionDecoder`
            (Table 3d).
        pixel_decoder: Arguments of `PixelDecoder`, without sizes.
        embed_dim: C.
        mask_dim: D.
        instances: Weights of the instance losses (`InstanceWeights`).
        aggregation: How masks are merged, the mode of `InstanceAggregation` (Table 3b).
        no_target: Arguments of `NoTargetPredictor` (Table 3c), without sizes.
        instance_weight, merged_weight: Loss weights; 1 and 1 in section 9.2. An instance weight of 0 is the row "None"
            of Table 3a.
        no_target_weight: Loss weight; ReLA's 0.1.
        merged_dice_weight: Weight of a dice loss of merged masks that are not empty, in addition to eq. 6's BCE. The
            paper has none. Trained from random weights with BCE alone, merged masks stay empty for long (RefShapes).
    """

    config_groups: ClassVar[dict[str, type]] = {
        **QuerySegmentor.config_groups,
        "instances": InstanceWeights,
        "no_target": NoTargetPredictor,
    }

    def __init__(
        self,
        *,
        encoder: dict,
        decoder: dict,
        pixel_decoder: dict | None = None,
        embed_dim: int = 256,
        mask_dim: int = 256,
        instances: dict | None = None,
        aggregation: Aggregation = "soft",
        no_target: dict | None = None,
        instance_weight: float = 1.0,
        merged_weight: float = 1.0,
        merged_dice_weight: float = 0.0,
        no_target_weight: float = 0.1,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(
            encoder=encoder,
            pixel_decoder=pixel_decoder,
            embed_dim=embed_dim,
            mask_dim=mask_dim,
            data_preprocessor=data_preprocessor,
            postprocess=postprocess,
        )
        word_dim = self.encoder.text.embed_dim
        self.decoder = MODELS.build(
            dict(**decoder, embed_dim=embed_dim, pixel_dim=self.pixel_decoder.embed_dim, word_dim=word_dim)
        )
        self.heads = QueryHeads(embed_dim=embed_dim, mask_dim=mask_dim)
        self.aggregate = InstanceAggregation(aggregation)
        self.no_target = NoTargetPredictor(**(no_target or {}), embed_dim=embed_dim, sentence_dim=word_dim)
        self.instances = InstanceWeights(**(instances or {}))
        self.loss_weights = dict(
            instance=instance_weight, merged=merged_weight, merged_dice=merged_dice_weight, no_target=no_target_weight
        )

    def infer_encoded(self, batch: Batch, images: PixelFeatures | None) -> Prediction:
        # Encode pixels and words, decode queries
        pixels, text, groups = self.encode(batch, images)
        word_feats, word_mask = text.per_expression()  # (E, L, D), (E, L)
        decoded = self.decoder(pixels, word_feats, word_mask, groups=groups, heads=self.heads)
        if not self.training:
            decoded = decoded[-1:]
        # Heads and phrase-object alignment of each block
        blocks = []
        for query_feats, words in decoded:
            relevance_logits, mask_embeds = self.heads(query_feats)
            attention = word_attention(query_feats, words, word_mask)
            blocks.append(BlockOutput(relevance_logits, mask_embeds, misalignment(query_feats, words, attention)))
        # Merge the last block's instances
        relevance = blocks[-1].relevance_logits.sigmoid()
        mask_logits = groups.dot(blocks[-1].mask_embeds, pixels.mask_feats)  # (E, N, h, w)
        query_feats = decoded[-1].query_feats
        no_target = self.no_target(query_feats, relevance, word_feats, word_mask)
        auxiliary = DecoderOutputs(blocks, pixels.mask_feats, groups)
        instances = None
        if not self.training:
            instances = [InstancePrediction(*one) for one in zip(mask_logits, relevance, attention, strict=True)]
        return Prediction(self.aggregate(mask_logits, relevance), no_target, instances, auxiliary)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        outputs: DecoderOutputs = prediction.auxiliary
        losses: dict[str, Tensor] = {}
        if self.loss_weights["instance"]:
            referents = Referents(batch, outputs.mask_feats, outputs.groups)
            parts, bad = instance_losses(outputs.blocks, referents, self.instances)
            losses = {name: self.loss_weights["instance"] * value for name, value in parts.items()}
            losses["num_nonfinite_costs"] = bad
        losses |= self._merged_losses(prediction.mask_logits, batch)
        if not (self.loss_weights["instance"] and self.instances.poa):
            # Only alignment uses the last block's words. Distributed training needs a gradient for their parameters.
            losses["loss_merged"] = losses["loss_merged"] + 0.0 * outputs.blocks[-1].misalignment.sum()
        no_target = F.binary_cross_entropy_with_logits(prediction.no_target_logit.float(), batch.no_target().float())
        losses["loss_no_target"] = self.loss_weights["no_target"] * no_target
        return losses

    def _merged_losses(self, merged: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Eq. 6 at the size of the merged logits (E, h, w): a pixel's label is the share of it that is covered."""
        size = (merged.shape[-2], merged.shape[-1])
        covered = covered_share(batch.merged_masks(), size)
        valid = level_mask(batch.pixel_mask, size)[batch.image_of] if batch.is_padded else None
        losses = {"loss_merged": self.loss_weights["merged"] * mask_bce_loss(merged, covered, valid)}
        if self.loss_weights["merged_dice"]:
            dice = merged_dice_loss(merged, covered, batch, valid)
            losses["loss_merged_dice"] = self.loss_weights["merged_dice"] * dice
        return losses
