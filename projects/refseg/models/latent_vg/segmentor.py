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
from refseg.models.latent_vg.decoder import MaskDecoder
from refseg.models.latent_vg.latents import Distributor, LatentExpressions, distribute
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
class ExpressionFeatures:
    """Features of expressions.

    `text` (E, C): the text's class token. `latents` (E, N, C): the mean token of each latent expression.
    `subject_token` (E,): the chosen token of the text. The latter two are None without latent expressions.
    """

    text: Tensor
    latents: Tensor | None = None
    subject_token: Tensor | None = None


@MODELS.register_module()
class LatentVG(RefSegmentor):
    """Encode the text, N latent expressions and the image by one BEiT-3 and average the masks of all expressions.

    After the attention of every layer, subjects are aligned and attributes get visual concepts. Latent expressions use
    the language experts and text positions: the subject first, then attributes. A row whose path is dropped keeps what
    happens between attention and feed-forward.

    Args:
        encoder: A `BEiT3Encoder` whose only level is its patches.
        latents: Arguments of `LatentExpressions`, without sizes. None is the paper's baseline: plain BEiT-3 with the
            same decoder.
        distributor: How subjects are aligned, "mean" or "visual" (`distribute`); None disables it.
        concepts: Arguments of `VisualConceptInjector`, without sizes; None disables it.
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
        self.encoder: BEiT3Encoder = MODELS.build(encoder)
        dim = self.encoder.embed_dim
        if self.encoder.level_dims != (dim,):
            raise ConfigError("LatentVG upsamples patches in its own decoder. Leave encoder.level_scales at (1,).")
        self.weights = MaskWeights(**(weights or {}))
        self.distributor, self.latents, self.concepts = distributor, None, None
        if latents is not None:
            self.latents = LatentExpressions(**latents, embed_dim=dim)
            self.encoder.class_token.requires_grad_(False)  # the subject takes its place
        if concepts is not None:
            self.concepts = VisualConceptInjector(**concepts, embed_dim=dim, num_layers=len(self.encoder.layers))
        self.contrast = None if contrast is None else Contrast(**contrast)
        self.decoder = MaskDecoder(**(decoder or {}), embed_dim=dim)
        self.empty_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if empty_token else None
        self.score_empty = nn.Linear(dim, 1) if empty_token else None

    def infer(self, batch: Batch) -> Prediction:
        # Embed patches, words, latent expressions
        streams, valid, size, subject_token = self._embed(batch)
        num_words, num_pixels = batch.tokens.ids.shape[1], streams.pixels.shape[1]
        # Run BEiT-3, with distributor and concepts between attention and feed-forward
        image = valid[:, 1:num_pixels]
        between = None
        if self.distributor is not None or self.concepts is not None:
            between = partial(self._between, num_words=num_words, image=image)
        word_valid = None
        if self.latents is not None:
            word_valid = self.latents.attn_mask(valid, num_words, 0 if self.empty_token is None else 1)
        streams = self.encoder.run(streams, valid, word_valid=word_valid, between=between)
        text, subjects, attributes, empty = self._parts(streams.words, num_words)
        # One vector per expression: the text's class token, and the mean token of each latent expression
        features = ExpressionFeatures(text[:, 0])
        vectors = text[:, :1]
        if self.latents is not None:
            sequences = zip(subjects.split(1, 1), attributes.split(self.latents.lengths, 1), strict=True)
            latents = torch.stack([torch.cat(tokens, 1).mean(1) for tokens in sequences], 1)  # (E, N, C)
            features = ExpressionFeatures(text[:, 0], latents, subject_token)
            vectors = torch.cat([vectors, latents], 1)
        # Masks and no-target
        patches = self.encoder.levels(streams, batch, size).levels[0]  # (E, C, h, w)
        no_target = None if self.score_empty is None else self.score_empty(empty)[:, 0, 0]
        return Prediction(self.decoder(patches, vectors), no_target, auxiliary=features)

    def _embed(self, batch: Batch) -> tuple[Streams, Tensor, tuple[int, int], Tensor | None]:
        """Embed the batch, with subjects, attributes and the empty token after the words.

        Returns:
            The streams, the mask of valid tokens (E, T), (h, w), and the chosen subjects (E,).
        """
        tokens, subject, subject_token = [], None, None
        if self.latents is not None:
            words = self.encoder.embed_words(batch.tokens).index_select(0, batch.tokens.text_of)
            initial = self.latents(words, batch.tokens.word_mask.index_select(0, batch.tokens.text_of))
            subject, subject_token = initial.subject, initial.subject_token
            first = self.encoder.word_positions(1)
            positions = [self.encoder.word_positions(1 + length)[1:] for length in self.latents.lengths]
            subjects = (subject + first).expand(-1, len(positions), -1)
            tokens = [subjects, initial.attributes + torch.cat(positions)]
        streams, valid, size = self.encoder.embed(batch, subject)
        if self.empty_token is not None:
            tokens.append(self.empty_token.expand(batch.num_expressions, -1, -1))
        if tokens:
            streams = Streams(streams.pixels, torch.cat([streams.words, *tokens], 1))
            valid = F.pad(valid, (0, streams.words.shape[1] - batch.tokens.ids.shape[1]), value=True)
        return streams, valid, size, subject_token

    def _parts(self, words: Tensor, num_words: int) -> tuple[Tensor, ...]:
        """Split words into text (E, L, C), subjects (E, N, C), attributes (E, K, C), and the empty token, if any."""
        lengths = () if self.latents is None else self.latents.lengths
        counts = [num_words, len(lengths), sum(lengths)]
        return words.split([*counts, words.shape[1] - sum(counts)], 1)

    def _between(self, layer: int, streams: Streams, *, num_words: int, image: Tensor) -> Streams:
        """Align subjects and inject concepts after the attention of a layer; `image` (E, P) is False on padding."""
        subject, patches = streams.pixels[:, :1], streams.pixels[:, 1:]
        text, subjects, attributes, empty = self._parts(streams.words, num_words)
        if self.distributor is not None:
            subject, subjects = distribute(subject, subjects, self.distributor)
        if self.concepts is not None:
            relevant = relevant_patches(patches, text[:, 0], image)
            attributes = self.concepts(layer, attributes, patches, relevant)
        return Streams(torch.cat([subject, patches], 1), torch.cat([text, subjects, attributes, empty], 1))

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        bce, dice = merged_mask_losses(prediction.mask_logits, batch.merged_masks(), batch)
        losses = {"loss_mask": self.weights.bce * bce, "loss_dice": self.weights.dice * dice}
        features: ExpressionFeatures = prediction.auxiliary
        if self.contrast is not None and features.latents is not None:
            contrast = contrast_loss(cosines(features.text, features.latents), same_target(batch), self.contrast)
            losses["loss_contrast"] = self.contrast.weight * contrast
        if prediction.no_target_logit is not None:
            no_target = F.binary_cross_entropy_with_logits(
                prediction.no_target_logit.float(), batch.no_target().float()
            )
            losses["loss_no_target"] = self.weights.no_target * no_target
        return losses
