"""ReLA (Liu et al., CVPR 2023): regions with a mask each, merged by a minimap of the target.

Letters: E expressions, N = n * n regions, C channels, D channels of the mask features, (h, w) their size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice, with_sizes
from refseg.models.layers import PixelFeatures, mlp
from refseg.models.losses import merged_dice_loss, weighted_bce_loss
from refseg.models.query_segmentor import QuerySegmentor
from refseg.models.rela.decoder import RegionDecoder
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction, TextTokens

MinimapTarget = Literal["truncated", "covered"]


def truncated_minimap(masks: Tensor, side: int) -> Tensor:
    """Label regions as the published code does: masks (E, H, W) -> (E, n * n) bool.

    That code samples the mask bilinearly in the center of each region and truncates values below 1 to 0. A region is
    positive if all pixels around its center (four if its sides are even) are mask.
    """
    # Sample the inverse and compare with 0: sums of zeros are exact, but interpolation weights need not sum to 1
    outside = F.interpolate((~masks)[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
    return outside.flatten(1) == 0


def covered_minimap(masks: Tensor, side: int) -> Tensor:
    """Label regions of which at least half is mask, the likely intent: masks (E, H, W) -> (E, n * n) bool."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), (side, side)).flatten(1) >= 0.5


MINIMAPS: dict[str, Callable[[Tensor, int], Tensor]] = {"truncated": truncated_minimap, "covered": covered_minimap}


def pad_words(tokens: TextTokens, length: int) -> TextTokens:
    """Pad texts (U, L) to `length` tokens."""
    missing = length - tokens.ids.shape[1]
    if missing < 0:
        raise ConfigError(
            f"A phrase has {tokens.ids.shape[1]} tokens, and model.padded_words is {length}. Set padded_words to the "
            "tokenizer's max_words."
        )
    ids = F.pad(tokens.ids, (0, missing), value=tokens.pad_id)
    return replace(tokens, ids=ids, word_mask=F.pad(tokens.word_mask, (0, missing)), word_of=None)


class RegionHeads(BaseModule):
    """Mask embeddings, minimap, and no-target logit of regions."""

    def __init__(self, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.mask = mlp((embed_dim, embed_dim, embed_dim, mask_dim))
        self.minimap = nn.Linear(embed_dim, 2)
        self.no_target = mlp((embed_dim, embed_dim, 2))

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Regions (E, N, C) -> mask embeddings (E, N, D), minimap logits (E, N), no-target logits (E,).

        Both classifiers have two scores, of which only the difference matters.
        """
        normed = self.norm(regions)
        minimap, no_target = (difference(head(normed)) for head in (self.minimap, self.no_target))
        return self.mask(normed), minimap, no_target.mean(1)

    def mask_embeddings(self, regions: Tensor) -> Tensor:
        """Regions (E, N, C) -> mask embeddings (E, N, D)."""
        return self.mask(self.norm(regions))


def difference(scores: Tensor) -> Tensor:
    """Turn scores (..., 2) of no and yes into one logit (...), whose sigmoid is the softmax's second value."""
    no, yes = scores.unbind(-1)
    return yes - no


@MODELS.register_module()
class ReLA(QuerySegmentor):
    """The merged mask is the sum of the regions' masks, weighted by the minimap.

    Loss: weight (mask + minimap_weight minimap + no_target_weight no-target), each a two-class cross-entropy. Masks are
    compared at the input's size, without padding. If both scores are equal, the logit is 0: outside the mask by the
    protocol `gres`, as with argmax, inside by ours, and never "no target".

    Args:
        encoder: A `FusedEncoder` of four stages; the paper's has `PWAM`, without the last gate.
        decoder: Arguments of `RegionDecoder`, without sizes.
        pixel_decoder: Arguments of `PixelDecoder`, without sizes.
        embed_dim: C.
        mask_dim: D.
        padded_words: Pad every phrase to this number of tokens, and let regions read the padding too: 20 in the
            published code, whose weights need it for short phrases. None: regions read real words only.
        class_weights: Weights of outside and inside, for all three losses.
        weight, minimap_weight, no_target_weight: Loss weights of the published code.
        dice_weight: Weight of a dice loss of masks that are not empty, times `weight`. ReLA has none. Trained from
            random weights with cross-entropy alone, masks stay empty for long (RefShapes).
        minimap_target: "truncated", the labels of the published code, or "covered": at least half of a region is mask.
    """

    config_groups: ClassVar[dict[str, type]] = {
        **QuerySegmentor.config_groups,
        "decoder": RegionDecoder,
    }

    def __init__(
        self,
        *,
        encoder: dict,
        decoder: dict | None = None,
        pixel_decoder: dict | None = None,
        embed_dim: int = 256,
        mask_dim: int = 256,
        padded_words: int | None = None,
        class_weights: tuple[float, float] = (0.9, 1.1),
        weight: float = 5.0,
        minimap_weight: float = 0.1,
        no_target_weight: float = 0.1,
        dice_weight: float = 0.0,
        minimap_target: MinimapTarget = "truncated",
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
        check_choice("minimap_target", minimap_target, MINIMAPS)
        if len(class_weights) != 2:
            raise ConfigError(f"class_weights {class_weights} must be two numbers: of outside and inside.")
        self.class_weights = (class_weights[0], class_weights[1])
        self.padded_words, self.minimap_target = padded_words, minimap_target
        self.weight, self.minimap_weight, self.no_target_weight = weight, minimap_weight, no_target_weight
        self.dice_weight = dice_weight
        sizes = dict(embed_dim=embed_dim, pixel_dim=self.pixel_decoder.embed_dim, word_dim=self.encoder.word_dim)
        self.decoder = RegionDecoder(**with_sizes("decoder", decoder, **sizes))
        self.heads = RegionHeads(embed_dim=embed_dim, mask_dim=mask_dim)
        self.side = isqrt(self.decoder.num_queries)
        if self.side**2 != self.decoder.num_queries:
            raise ConfigError(
                f"decoder.num_queries {self.decoder.num_queries} must be a square, such as {self.side**2}, because "
                "regions form a grid."
            )

    def infer_encoded(self, batch: Batch, images: PixelFeatures | None) -> Prediction:
        # Encode pixels and words, decode regions
        if self.padded_words is not None:
            batch = replace(batch, tokens=pad_words(batch.tokens, self.padded_words))
        pixels, text, groups = self.encode(batch, images)
        words, word_mask = text.per_expression()  # (E, L, channels of words), (E, L)
        if self.padded_words is not None:
            word_mask = torch.ones_like(word_mask)
        decoded = self.decoder(pixels, words, word_mask, groups=groups, heads=self.heads)
        mask_embeds, minimap, no_target = self.heads(decoded[-1].query_feats)
        # Merge embeddings before the dot product, which is linear: one product with the pixels instead of N
        merged = torch.bmm(minimap[:, None], mask_embeds)  # (E, 1, D)
        return Prediction(groups.dot(merged, pixels.mask_feats)[:, 0], no_target, auxiliary=minimap)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        masks = batch.merged_masks()  # (E, H, W)
        size = (masks.shape[-2], masks.shape[-1])
        logits = F.interpolate(prediction.mask_logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
        mask = weighted_bce_loss(logits, masks, self.class_weights, valid)
        minimap = weighted_bce_loss(prediction.auxiliary, self._minimaps(masks, batch), self.class_weights)
        no_target = weighted_bce_loss(prediction.no_target_logit, batch.no_target(), self.class_weights)
        losses = {
            "loss_mask": self.weight * mask,
            "loss_minimap": self.weight * self.minimap_weight * minimap,
            "loss_no_target": self.weight * self.no_target_weight * no_target,
        }
        if self.dice_weight:
            dice = merged_dice_loss(logits, masks, batch, valid)
            losses["loss_dice"] = self.weight * self.dice_weight * dice
        return losses

    def _minimaps(self, masks: Tensor, batch: Batch) -> Tensor:
        """Label regions (E, N) by masks (E, H, W). The grid of regions covers the image without its padding."""
        label = MINIMAPS[self.minimap_target]
        per_image = zip(masks.split(batch.expression_counts), (meta.content_size for meta in batch.metas), strict=True)
        return torch.cat([label(rows[:, :height, :width], self.side) for rows, (height, width) in per_image])
