"""ReLA (Liu et al., CVPR 2023): an image as regions, each with a mask and a share in the answer.

Letters: E expressions, N regions, C channels, D channels of mask features, (h, w) their size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.layers import PixelFeatures, mlp
from refseg.models.losses import dice_loss, weighted_bce_loss
from refseg.models.query_segmentor import QuerySegmentor
from refseg.models.rela.decoder import RegionDecoder
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction

MinimapTarget = Literal["truncated", "covered"]


def truncated_minimap(masks: Tensor, side: int) -> Tensor:
    """Masks (E, H, W) -> (E, n * n) bool: a quirk of the published code, which samples the mask bilinearly in the
    middle of each region and cuts what is below 1 down to 0. So a region counts if all pixels around its middle (four,
    where its sides are even) are mask.

    What is outside is sampled, and asked for being 0: sums of zeros are exact, and sums of weights are not always 1.
    """
    outside = F.interpolate((~masks)[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
    return outside.flatten(1) == 0


def covered_minimap(masks: Tensor, side: int) -> Tensor:
    """Masks (E, H, W) -> (E, n * n) bool: at least half of the region is mask, as labels seem meant to be."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), (side, side)).flatten(1) >= 0.5


MINIMAPS: dict[str, Callable[[Tensor, int], Tensor]] = {"truncated": truncated_minimap, "covered": covered_minimap}


class RegionHeads(BaseModule):
    """What regions say: mask embeddings, the minimap, and "nothing here"."""

    def __init__(self, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.mask = mlp((embed_dim, embed_dim, embed_dim, mask_dim))
        self.minimap = nn.Linear(embed_dim, 2)
        self.no_target = mlp((embed_dim, embed_dim, 2))

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E, N, C) -> mask embeddings (E, N, D), minimap logits (E, N), no-target logits (E,).

        Both classifiers have two scores, of which only the difference matters.
        """
        normed = self.norm(regions)
        minimap, no_target = (difference(head(normed)) for head in (self.minimap, self.no_target))
        return self.mask(normed), minimap, no_target.mean(1)

    def mask_embeddings(self, regions: Tensor) -> Tensor:
        """(E, N, C) -> (E, N, D)"""
        return self.mask(self.norm(regions))


def difference(scores: Tensor) -> Tensor:
    """Scores (..., 2) of no and yes -> one logit (...): its sigmoid is the softmax's second value."""
    no, yes = scores.unbind(-1)
    return yes - no


@MODELS.register_module()
class ReLA(QuerySegmentor):
    """The merged mask is the sum of the regions' masks, weighted by the minimap.

    Loss: weight times (mask + minimap_weight minimap + no_target_weight no-target), each a cross-entropy of two
    classes. Masks are compared at the input's size, where padding does not count. An exact tie of two scores is a logit
    of 0: outside of the mask by the protocol `gres`, as with argmax, inside by our own, and never "no target".

    Args:
        encoder: a `FusedEncoder` of four stages; the paper's has `PWAM`, without the last gate.
        decoder: arguments of `RegionDecoder`, without sizes.
        pixel_decoder: arguments of `PixelDecoder`, without sizes.
        embed_dim: C.
        mask_dim: D.
        class_weights: of outside and inside, for all three.
        weight, minimap_weight, no_target_weight: of the losses; published code.
        dice_weight: of a dice loss of the masks of phrases that refer to something, times `weight`. ReLA has none; from
            random weights, cross-entropy alone leaves masks empty for long (RefShapes; `InstAlign` has one there too).
        minimap_target: "truncated", as the published code labels regions, or "covered"; see `minimap.py`.
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
        outside, inside = class_weights
        self.class_weights = (outside, inside)
        self.weight, self.minimap_weight, self.no_target_weight = weight, minimap_weight, no_target_weight
        self.dice_weight = dice_weight
        if minimap_target not in MINIMAPS:
            raise ConfigError(f"minimap_target is one of {', '.join(MINIMAPS)}, not {minimap_target!r}")
        self.minimap_target = minimap_target
        self.decoder = RegionDecoder(
            **(decoder or {}),
            embed_dim=embed_dim,
            pixel_dim=self.pixel_decoder.embed_dim,
            word_dim=self.encoder.text.embed_dim,
        )
        self.heads = RegionHeads(embed_dim=embed_dim, mask_dim=mask_dim)
        self.side = isqrt(self.decoder.num_queries)
        if self.side**2 != self.decoder.num_queries:
            raise ConfigError(
                f"decoder.num_queries must be a square, as regions are a grid, not {self.decoder.num_queries}"
            )

    def infer_encoded(self, batch: Batch, images: PixelFeatures | None) -> Prediction:
        pixels, text, groups = self.encode(batch, images)
        decoded = self.decoder(pixels, *text.per_expression(), groups=groups, heads=self.heads)
        mask_embeds, minimap, no_target = self.heads(decoded[-1].query_feats)
        # Sums of masks are masks of sums: one product with the pixels instead of N.
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
            present = ~batch.no_target()
            inside = logits if valid is None else logits.masked_fill(~valid, -30.0)
            losses["loss_dice"] = self.weight * self.dice_weight * dice_loss(inside[present], masks[present])
        return losses

    def _minimaps(self, masks: Tensor, batch: Batch) -> Tensor:
        """Masks (E, H, W) -> labels (E, N) of regions, which divide the image without its padding."""
        label = MINIMAPS[self.minimap_target]
        if not batch.is_padded:
            return label(masks, self.side)
        sizes = [batch.metas[image].content_size for image in batch.image_of.tolist()]
        crops = [mask[None, :height, :width] for mask, (height, width) in zip(masks, sizes, strict=True)]
        return torch.cat([label(crop, self.side) for crop in crops])
