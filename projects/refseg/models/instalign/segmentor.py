"""InstAlign ("Phrase-Instance Alignment for Generalized Referring Segmentation").

Letters: B images, E expressions, R rows of the mask features (B, or E if the encoder fuses words), N queries, L words,
C channels, D channels of the mask features, (h, w) their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.instalign.decoder import ObjectTextDecoder
from refseg.models.instalign.heads import (
    NUM_STATISTICS,
    Aggregation,
    InstanceAggregation,
    NoTargetPredictor,
    mask_statistics,
    misalignment,
    word_attention,
)
from refseg.models.layers import Groups, PixelFeatures, QueryHeads, init_mask2former, level_mask
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
from refseg.structures import Batch, Prediction, StackedInstances

WordMatrix = Literal["dot", "attention"]


@dataclass(frozen=True, slots=True)
class WordSource:
    """Source of the word weights that instances are returned with.

    Args:
        matrix: "attention", the object-text attention of a decoder block, or "dot", the attention of eq. 2 in the last
            block. On RefShapes the former names words that describe the instance and the latter does not
            (docs/results/instalign.md). A decoder without object-text attention always returns the latter.
        block: The block. The last but one was best on RefShapes' val split.
        heads: Attention heads to average; None for all.
    """

    matrix: WordMatrix = "attention"
    block: int = -2
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("words.matrix", self.matrix, get_args(WordMatrix))


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
        alignment: Attention of queries to words in eq. 2: "dot", the dot product of the block's outputs, or
            "attention", the block's object-text attention, which the words of eq. 2 also describe.
        words: Source of the word weights that instances are returned with (`WordSource`).
        aggregation: How masks are merged, the mode of `InstanceAggregation` (Table 3b).
        no_target: Arguments of `NoTargetPredictor` (Table 3c), without sizes.
        instance_weight, merged_weight: Loss weights; 1 and 1 in section 9.2. An instance weight of 0 is the row "None"
            of Table 3a.
        no_target_weight: Loss weight; ReLA's 0.1.
        init: "mask2former", Xavier weights in the decoder's blocks and PyTorch's in the heads, or "heads", the reverse,
            which is for small models from random weights: there, Mask2Former's makes queries alike before they have
            learned to differ.
        relevance_prior: Initial relevance of every query. The paper does not give it. With 0.5, the merged mask begins
            as a sum over half of all queries, and its loss has most of the first gradient (docs/models.md).
        merged_dice_weight: Weight of a dice loss of merged masks that are not empty, in addition to eq. 6's BCE. The
            paper has none. Trained from random weights with BCE alone, merged masks stay empty for long (RefShapes).
    """

    config_groups: ClassVar[dict[str, type]] = {
        **QuerySegmentor.config_groups,
        "instances": InstanceWeights,
        "no_target": NoTargetPredictor,
        "words": WordSource,
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
        alignment: WordMatrix = "dot",
        words: dict | None = None,
        aggregation: Aggregation = "soft",
        no_target: dict | None = None,
        instance_weight: float = 1.0,
        merged_weight: float = 1.0,
        merged_dice_weight: float = 0.0,
        no_target_weight: float = 0.1,
        init: Literal["mask2former", "heads"] = "mask2former",
        relevance_prior: float = 0.5,
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
        word_dim = self.encoder.word_dim
        self.instances = InstanceWeights(**(instances or {}))
        self.aligned = bool(instance_weight and self.instances.poa)
        check_choice("alignment", alignment, get_args(WordMatrix))
        self.alignment, self.words = alignment, WordSource(**(words or {}))
        self.decoder = MODELS.build(
            dict(**decoder, embed_dim=embed_dim, pixel_dim=self.pixel_decoder.embed_dim, word_dim=word_dim)
        )
        if alignment == "attention" and not getattr(self.decoder, "reads_words", False):
            raise ConfigError(
                'alignment="attention" needs a decoder whose blocks attend to words. Use alignment="dot".'
            )
        if not -self.decoder.num_blocks <= self.words.block < self.decoder.num_blocks:
            raise ConfigError(f"words.block {self.words.block} exceeds the decoder's {self.decoder.num_blocks} blocks.")
        if not self.aligned and isinstance(self.decoder, ObjectTextDecoder):
            self.decoder.blocks[-1].keep_words()  # nothing reads the last block's words
        self.heads = QueryHeads(embed_dim=embed_dim, mask_dim=mask_dim)
        check_choice("init", init, ("mask2former", "heads"))
        if init == "heads":
            for part in self.heads.modules():
                if isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight)
                    nn.init.zeros_(part.bias)
        elif isinstance(self.decoder, ObjectTextDecoder):  # ReLA's has initialized its own
            init_mask2former(self.decoder.blocks)
        if not 0 < relevance_prior < 1:
            raise ConfigError(f"relevance_prior must lie between 0 and 1, not {relevance_prior}.")
        nn.init.constant_(self.heads.relevance[-1].bias, math.log(relevance_prior / (1 - relevance_prior)))
        self.aggregate = InstanceAggregation(aggregation)
        self.no_target = NoTargetPredictor(
            **(no_target or {}),
            embed_dim=embed_dim,
            sentence_dim=word_dim,
            num_statistics=NUM_STATISTICS * self.decoder.num_blocks,
        )
        self.loss_weights = dict(
            instance=instance_weight, merged=merged_weight, merged_dice=merged_dice_weight, no_target=no_target_weight
        )

    def infer_encoded(self, batch: Batch, images: PixelFeatures | None) -> Prediction:
        # Encode pixels and words, decode queries
        pixels, text, groups = self.encode(batch, images)
        word_feats, word_mask = text.per_expression()  # (E, L, D), (E, L)
        decoded = self.decoder(pixels, word_feats, word_mask, groups=groups, heads=self.heads)
        object_text = decoded[self.words.block].word_attention  # (E, heads, N, L)
        reads_masks = self.no_target.features == "concat_mask"
        if not (self.training or reads_masks):
            decoded = decoded[-1:]
        # Heads of each block, and eqs. 2 to 4 for the loss
        blocks = []
        for query_feats, words, attention in decoded:
            relevance_logits, mask_embeds = self.heads(query_feats)
            misaligned = None
            if self.training and self.aligned:
                by_attention = self.alignment == "attention" and attention is not None
                weights = attention.mean(1) if by_attention else word_attention(query_feats, words, word_mask)
                misaligned = misalignment(query_feats, words, weights)
            blocks.append(BlockOutput(relevance_logits, mask_embeds, misaligned))
        # Merge the instances of the last block
        relevance = blocks[-1].relevance_logits.sigmoid()
        mask_logits = groups.dot(blocks[-1].mask_embeds, pixels.mask_feats)  # (E, N, h, w)
        merged = self.aggregate(mask_logits, relevance)
        # What the masks of all blocks say about "nothing here", at half their size
        statistics = []
        if reads_masks:
            half = F.avg_pool2d(pixels.mask_feats, 2, ceil_mode=True)
            size = (half.shape[-2], half.shape[-1])
            valid = level_mask(batch.pixel_mask, size)[batch.image_of] if batch.is_padded else None
            for block in blocks:
                block_relevance, logits = block.relevance_logits.sigmoid(), groups.dot(block.mask_embeds, half)
                block_merged = self.aggregate(logits, block_relevance)
                statistics.append(mask_statistics(logits, block_relevance, block_merged, valid))
        query_feats, words, _ = decoded[-1]
        no_target = self.no_target(query_feats, relevance, word_feats, word_mask, statistics)
        # Instances with their words
        auxiliary = DecoderOutputs(blocks, pixels.mask_feats, groups)
        if self.training:
            return Prediction(merged, no_target, auxiliary=auxiliary)
        if object_text is None or self.words.matrix == "dot":
            weights = word_attention(query_feats, words, word_mask)
        else:
            weights = object_text[:, self.words.heads or slice(None)].mean(1)
        return Prediction(merged, no_target, StackedInstances(mask_logits, relevance, weights), auxiliary)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        outputs: DecoderOutputs = prediction.auxiliary
        losses: dict[str, Tensor] = {}
        if self.loss_weights["instance"]:
            referents = Referents(batch, outputs.mask_feats, outputs.groups)
            parts, bad = instance_losses(outputs.blocks, referents, self.instances)
            losses = {name: self.loss_weights["instance"] * value for name, value in parts.items()}
            losses["num_nonfinite_costs"] = bad
        losses |= self._merged_losses(prediction.mask_logits, batch)
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
