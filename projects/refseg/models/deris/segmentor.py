"""DeRIS (Dai et al., ICCV 2025, "Decoupling Perception and Cognition for Enhanced Referring Image Segmentation").

Letters: B images, E expressions, N queries, L words, D channels of BEiT-3, (H, W) the input's size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from refseg.errors import ConfigError, with_sizes
from refseg.models.deris.decoder import DecoderOutput, LoopbackDecoder
from refseg.models.encoders.beit3 import BEiT3Encoder
from refseg.models.encoders.fused import build_vision
from refseg.models.layers import Groups, PixelDecoder, level_mask
from refseg.models.losses import InstanceWeights, Referents, instance_losses
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, EncodedFeatures, Prediction, StackedInstances


@MODELS.register_module()
class DeRIS(RefSegmentor):
    """Perception (a Mask2Former on Swin) and cognition (BEiT-3) exchange queries.

    The answer is the union of the instances whose relevance exceeds `postprocess.instance_threshold`; "nothing here"
    if there are none. The head of "nothing here" has a loss, but as in the published code it decides nothing unless
    `postprocess.no_target` says so.

    Loss: Mask2Former's losses of the last block, `auxiliary_weight` times those of each earlier one and of the initial
    queries, and binary cross-entropy of "nothing here".

    Args:
        encoder: A `BEiT3Encoder` of one level, the patches. Images are resized to its `image_size`.
        vision: The image encoder of the perception branch, with four stages.
        decoder: Arguments of `LoopbackDecoder`, without sizes.
        pixel_decoder: Arguments of `PixelDecoder`, without sizes.
        embed_dim: Channels of queries, pixels, and mask features.
        instances: Weights of the instance losses (`InstanceWeights`). Mask2Former's cost of relevance is "probability".
        auxiliary_weight: Weight of the instance losses before the last block, from the published code.
        no_target_weight: Weight of the loss of "nothing here", from the published code.
        frozen_vision: Keep the weights of `vision`, as the published code does.
        pretrained: Mask2Former's published weights, for the perception branch: `vision`, pixel decoder, blocks, and
            mask head. Loaded when training starts (`init_weights`).
    """

    config_groups: ClassVar[dict[str, type]] = {
        **RefSegmentor.config_groups,
        "decoder": LoopbackDecoder,
        "pixel_decoder": PixelDecoder,
        "instances": InstanceWeights,
    }
    unites_instances = True

    def __init__(
        self,
        *,
        encoder: dict,
        vision: dict,
        decoder: dict | None = None,
        pixel_decoder: dict | None = None,
        embed_dim: int = 256,
        instances: dict | None = None,
        auxiliary_weight: float = 0.2,
        no_target_weight: float = 1.0,
        frozen_vision: bool = True,
        pretrained: str | None = None,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        self.encoder = self.build_encoder(encoder)
        if not isinstance(self.encoder, BEiT3Encoder) or self.encoder.strides != (self.encoder.patch_size,):
            raise ConfigError("DeRIS needs encoder.type='BEiT3Encoder' with encoder.level_scales=(1,).")
        self.vision = build_vision(vision, (0, 1, 2, 3)).requires_grad_(not frozen_vision)
        sizes = dict(level_dims=self.vision.dims, embed_dim=embed_dim, mask_dim=embed_dim)
        self.pixel_decoder = PixelDecoder(**with_sizes("pixel_decoder", pixel_decoder, **sizes))
        sizes = dict(embed_dim=embed_dim, encoder_dim=self.encoder.word_dim)
        self.decoder = LoopbackDecoder(**with_sizes("decoder", decoder, **sizes))
        self.instances = InstanceWeights(**(instances or {}))
        self.auxiliary_weight, self.no_target_weight = auxiliary_weight, no_target_weight
        self.pretrained = pretrained

    def init_weights(self) -> None:
        """Initialize the parts, then load `pretrained`; once."""
        first = not self.is_init
        super().init_weights()
        if first and self.pretrained is not None:
            from refseg.models.deris.weights import load_perception

            print_log(load_perception(self, self.pretrained), logger="current")

    def infer(self, batch: Batch) -> Prediction:
        # Perception: pixels of each image
        levels = self.vision(batch.images)
        masks = [level_mask(batch.pixel_mask, (x.shape[-2], x.shape[-1])) for x in levels]
        features = EncodedFeatures(levels, masks, self.vision.strides, batch.image_of)
        pixels = self.pixel_decoder(features, padded=batch.is_padded)
        # Cognition: patches and words of each expression, from smaller images
        size = [side * self.encoder.patch_size for side in self.encoder.grid]
        images = F.interpolate(batch.images, size=size, mode="bilinear", align_corners=False)
        patches, text = self.encoder(replace(batch, images=images))
        words, word_mask = text.per_expression()  # (E, L, D), (E, L)
        # Queries go back and forth between both
        output = self.decoder(pixels, patches.levels[0], words, word_mask, image_of=batch.image_of)
        if self.training:
            return Prediction(None, -output.existence_logit, auxiliary=output)
        # Masks at the input's size, interpolated as the losses see them
        last = output.blocks[-1]
        logits = Groups(batch.num_expressions, words.device).dot(last.mask_embeds, output.mask_feats)  # (E, N, h, w)
        logits = F.interpolate(logits, size=batch.images.shape[-2:], mode="bilinear", align_corners=True)
        instances = StackedInstances(logits, last.relevance_logits.sigmoid())
        return Prediction(None, -output.existence_logit, instances, output)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        output: DecoderOutput = prediction.auxiliary
        groups = Groups(batch.num_expressions, output.mask_feats.device)
        referents = Referents(batch, output.mask_feats, groups, align_corners=True)
        losses, bad = instance_losses(output.blocks[-1:], referents, self.instances)
        earlier, bad_earlier = instance_losses(output.blocks[:-1], referents, self.instances)  # means over the blocks
        for name, value in earlier.items():
            losses[name] = losses[name] + self.auxiliary_weight * (len(output.blocks) - 1) * value
        losses["num_nonfinite_costs"] = bad + bad_earlier
        target = batch.no_target().float()
        no_target = F.binary_cross_entropy_with_logits(prediction.no_target_logit.float(), target)
        losses["loss_no_target"] = self.no_target_weight * no_target
        return losses
