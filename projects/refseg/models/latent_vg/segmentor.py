"""LatentVG ("Latent Expression Generation for Referring Image Segmentation and Grounding", ICCV 2025).

We have a summary of the paper without formulas. What it leaves open is a config key, documented with our reason.

Letters: E expressions, L tokens of the text, N latent expressions with K attribute tokens in all, P = h * w patches, T
all tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.encoders import BEiT3Encoder
from refseg.models.encoders.multiway import Streams
from refseg.models.latent_vg.concepts import VisualConceptInjector, relevant_patches
from refseg.models.latent_vg.contrast import Contrast, contrast_loss, cosines, same_target
from refseg.models.latent_vg.decoder import MaskDecoder, average_masks
from refseg.models.latent_vg.latents import Distributor, LatentExpressions, TokenLayout, distribute
from refseg.models.losses import merged_mask_losses
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


@dataclass(frozen=True, slots=True)
class MaskWeights:
    """Loss weights: BCE and dice of the averaged mask (the paper's), and no-target (not given; ReLA's)."""

    bce: float = 2.0
    dice: float = 0.5
    no_target: float = 0.1


@dataclass(slots=True)
class Expressions:
    """Outputs of the text and its N latent expressions, for the losses and for measurements.

    Args:
        features: (E, N + 1, C), the class token of the text, then those of the latent expressions.
        masks: (E, N + 1, h, w) mask logits of each.
        subject_token: (E,), the text's token chosen as the subject; None without latent expressions.
        subject_prob: (E,), its probability; None without latent expressions.
    """

    features: Tensor
    masks: Tensor
    subject_token: Tensor | None = None
    subject_prob: Tensor | None = None


@MODELS.register_module()
class LatentVG(RefSegmentor):
    """Encode the text, N latent expressions and the image by one BEiT-3 and average the masks of all expressions.

    After the attention of every layer, subjects are aligned and attributes get visual concepts. Latent expressions use
    the language experts and the positions of a text (`TokenLayout`). A row whose path is dropped keeps what happens
    between attention and feed-forward.

    Args:
        encoder: A `BEiT3Encoder` whose only level is its patches.
        latents: Arguments of `LatentExpressions`, without sizes. None is the paper's baseline: plain BEiT-3 with the
            same decoder.
        distributor: How subjects are aligned: "visual", as a public note on the paper says, or "mean" (`distribute`).
            None disables it.
        concepts: Arguments of `VisualConceptInjector`, without sizes; None disables it. There is none in the last
            layer, because nothing attends to attributes after it.
        contrast: Settings of the contrastive loss (`Contrast`); None disables it.
        decoder: Arguments of `MaskDecoder`, without sizes.
        weights: Weights of the other losses (`MaskWeights`).
        empty_token: Add a learned token to the words, whose score predicts no-target (GRES).
    """

    config_groups: ClassVar[dict[str, type]] = {
        **RefSegmentor.config_groups,
        "latents": LatentExpressions,
        "concepts": VisualConceptInjector,
        "contrast": Contrast,
        "decoder": MaskDecoder,
        "weights": MaskWeights,
    }

    def __init__(
        self,
        *,
        encoder: dict,
        latents: dict | None,
        distributor: Distributor | None,
        concepts: dict | None,
        contrast: dict | None,
        decoder: dict | None = None,
        weights: dict | None = None,
        empty_token: bool = False,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        if latents is None and any(part is not None for part in (distributor, concepts, contrast)):
            raise ConfigError("latents=None has no use for distributor, concepts and contrast. Set them to None, too.")
        check_choice("distributor", distributor, (*get_args(Distributor), None))
        self.encoder: BEiT3Encoder = self.build_encoder(encoder)
        dim = self.encoder.embed_dim
        if self.encoder.level_dims != (dim,):
            raise ConfigError("LatentVG upsamples patches in its own decoder. Leave encoder.level_scales at (1,).")
        self.weights = MaskWeights(**(weights or {}))
        self.distributor, self.latents, self.concepts = distributor, None, None
        if latents is not None:
            self.latents = LatentExpressions(**latents, embed_dim=dim)
            self.encoder.class_token.requires_grad_(False)  # the subject takes its place
        if concepts is not None:
            self.concepts = VisualConceptInjector(**concepts, embed_dim=dim, num_layers=len(self.encoder.layers) - 1)
        self.layout = TokenLayout(() if self.latents is None else self.latents.lengths, empty_token=empty_token)
        self.contrast = None if contrast is None else Contrast(**contrast)
        self.decoder = MaskDecoder(**(decoder or {}), embed_dim=dim)
        self.empty_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if empty_token else None
        self.score_empty = nn.Linear(dim, 1) if empty_token else None

    def infer(self, batch: Batch) -> Prediction:
        text_of, num_words = batch.tokens.text_of, batch.tokens.ids.shape[1]
        # Make the latent expressions; their subject takes the place of the pixels' class token
        initial, subject, added = None, None, []
        if self.latents is not None:
            words = self.encoder.embed_words(batch.tokens).index_select(0, text_of)
            initial = self.latents(words, batch.tokens.word_mask.index_select(0, text_of))
            positions = self.encoder.word_positions(2 + max(self.latents.lengths))
            subject, added = initial.subject, [initial.tokens + positions[self.layout.position_of]]
        # Embed patches and words, and append the other tokens to the words
        streams, valid, size = self.encoder.embed(batch, subject)
        if self.empty_token is not None:
            added.append(self.empty_token.expand(batch.num_expressions, -1, -1))
        streams = Streams(streams.pixels, torch.cat([streams.words, *added], 1))
        image = valid[:, 1 : streams.pixels.shape[1]]  # (E, P)
        valid = F.pad(valid, (0, streams.words.shape[1] - num_words), value=True)
        # Run BEiT-3, with distributor and concepts between attention and feed-forward
        apart = self.latents is not None and self.latents.apart
        streams = self.encoder.run(
            streams,
            valid,
            word_valid=self.layout.attn_mask(valid, num_words) if apart else None,
            between=partial(self._between, image=image) if self.distributor or self.concepts else None,
        )
        tokens = self.layout.split(streams.words)
        # One mask per expression, from its class token, and their average
        features = torch.cat([tokens.words[:, :1], tokens.classes], 1)  # (E, N + 1, C)
        masks = self.decoder(self.encoder.levels(streams, batch, size).levels[0], features)
        expressions = Expressions(features, masks)
        if initial is not None:
            expressions.subject_token, expressions.subject_prob = initial.subject_token, initial.subject_prob
        no_target = None if self.score_empty is None else self.score_empty(tokens.empty)[:, 0, 0]
        return Prediction(average_masks(masks, self.decoder.average), no_target, auxiliary=expressions)

    def _between(self, layer: int, streams: Streams, *, image: Tensor) -> Streams:
        """Align subjects and inject concepts after the attention of a layer; `image` (E, P) is False on padding."""
        subject, patches = streams.pixels[:, :1], streams.pixels[:, 1:]
        tokens = self.layout.split(streams.words)
        if self.distributor is not None:
            subject, subjects = distribute(subject, tokens.subjects, self.distributor)
            tokens = tokens._replace(subjects=subjects)
        if self.concepts is not None and layer < len(self.concepts.out):
            relevant = relevant_patches(patches, tokens.words[:, 0], image)
            tokens = tokens._replace(attributes=self.concepts(layer, tokens.attributes, patches, relevant))
        return Streams(torch.cat([subject, patches], 1), torch.cat(tokens, 1))

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        bce, dice = merged_mask_losses(prediction.mask_logits, batch.merged_masks(), batch)
        losses = {"loss_mask": self.weights.bce * bce, "loss_dice": self.weights.dice * dice}
        if self.contrast is not None:
            features = prediction.auxiliary.features
            similarity = cosines(features[:, 0], features[:, 1:])
            contrast = contrast_loss(similarity, same_target(batch), self.contrast)
            losses["loss_contrast"] = self.contrast.weight * contrast
        if prediction.no_target_logit is not None:
            no_target = F.binary_cross_entropy_with_logits(
                prediction.no_target_logit.float(), batch.no_target().float()
            )
            losses["loss_no_target"] = self.weights.no_target * no_target
        return losses
