"""DMMI (Hu et al., ICCV 2023, "Beyond One-to-One: Rethinking the Referring Image Segmentation").

Letters: E expressions, L words, C channels of words, (h, w) the size of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.datasets.tokenizers import is_content_word
from refseg.errors import ConfigError, with_sizes
from refseg.models.dmmi.decoder import Contrast, DecoderLayer, ImageToTextDecoder, TextToImageDecoder
from refseg.models.losses import weighted_bce_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction, TextTokens


@MODELS.register_module()
class DMMI(RefSegmentor):
    """Words find pixels for the mask; in training, pixels also give back an entity that is erased from the phrase.

    Loss: cross-entropy of background and referent at the input's size, as in `LAVT`; one minus the cosine of the words
    of the whole phrase after the encoder and of the rebuilt ones; and the contrast of pixels with the batch's phrases.
    The last two count expressions that refer to something.

    As in the published code, each phrase is padded to `num_words`, and the decoders read the padding like words.

    Args:
        encoder: A `FusedEncoder` with `MultiScaleFusion`.
        num_words: The tokenizer's `max_words`.
        layer: Arguments of `DecoderLayer`, without sizes.
        class_weights: Weights of background and referent.
        reconstruction_weight, contrast_weight: Weights of the second and the third loss.
        temperature: Cosines of the contrast are divided by it.
    """

    config_groups: ClassVar[dict[str, type]] = {**RefSegmentor.config_groups, "layer": DecoderLayer}

    def __init__(
        self,
        *,
        encoder: dict,
        num_words: int = 20,
        layer: dict | None = None,
        class_weights: tuple[float, float] = (0.9, 1.1),
        reconstruction_weight: float = 0.01,
        contrast_weight: float = 0.01,
        temperature: float = 0.05,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        if temperature <= 0:
            raise ConfigError(f"temperature must be positive, not {temperature}.")
        background, referent = class_weights
        self.class_weights = (background, referent)
        self.num_words, self.temperature = num_words, temperature
        self.reconstruction_weight, self.contrast_weight = reconstruction_weight, contrast_weight
        self.encoder = self.build_encoder(encoder)
        if not hasattr(self.encoder, "text"):
            raise ConfigError(f"DMMI needs a FusedEncoder: {type(self.encoder).__name__} cannot encode phrases alone.")
        level_dims, embed_dim = self.encoder.level_dims, self.encoder.word_dim
        layer = with_sizes("layer", layer, embed_dim=embed_dim)
        self.decoder = TextToImageDecoder(level_dims, layer)
        self.text_decoder = ImageToTextDecoder(layer)
        self.contrast = Contrast(embed_dim, num_levels=len(level_dims) - 1)

    def infer(self, batch: Batch) -> Prediction:
        # Encode; one row per expression
        features, text = self.encoder(replace(batch, tokens=padded(batch.tokens, self.num_words)))
        words, word_mask = text.per_expression()  # (E, L, C), (E, L)
        # Text to image
        decoded = self.decoder(features.per_expression(), words, padded=batch.is_padded)
        background, referent = decoded.scores.unbind(1)  # (E, h, w) each
        size = batch.images.shape[-2:]
        logits = F.interpolate((referent - background)[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        return Prediction(logits, auxiliary=(decoded, words, word_mask))

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        valid = batch.pixel_mask[batch.image_of] if batch.is_padded else None
        masks = batch.merged_masks()
        loss = weighted_bce_loss(prediction.mask_logits, masks, self.class_weights, valid)
        # Image to text
        decoded, words, word_mask = prediction.auxiliary
        texts = [text for meta in batch.metas for text in meta.texts]
        erased, _ = self.encoder.text(padded(erase_entities(batch.tokens, texts), self.num_words)).per_expression()
        rebuilt = self.text_decoder(erased, decoded.pixels, decoded.pixel_mask)
        # Losses
        present = (~batch.no_target()).float()
        cosines = F.cosine_similarity(words.detach().float(), rebuilt.float(), dim=-1, eps=1e-6)  # (E, L)
        similarity = (cosines * word_mask).sum(1) / word_mask.sum(1).clamp_min(1)
        contrast = contrast_losses(self.contrast(decoded.means, words) / self.temperature)
        return {
            "loss_mask": loss,
            "loss_reconstruction": self.reconstruction_weight * (1 - (similarity * present).mean()),
            "loss_contrast": self.contrast_weight * (contrast * present).mean(),
        }


def contrast_losses(logits: Tensor) -> Tensor:
    """Cross-entropy of each row of logits (E, E) and of its column, (E,): the diagonal is right."""
    labels = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")


def padded(tokens: TextTokens, num_words: int) -> TextTokens:
    """Pad tokens (U, L) to (U, num_words)."""
    more = num_words - tokens.ids.shape[1]
    if more < 0:
        raise ConfigError(
            f"A text has {tokens.ids.shape[1]} tokens, more than model.num_words={num_words}. "
            "Set it to the tokenizer's max_words."
        )
    return replace(
        tokens,
        ids=F.pad(tokens.ids, (0, more), value=tokens.pad_id),
        word_mask=F.pad(tokens.word_mask, (0, more)),
        word_of=None,
    )


def erase_entities(tokens: TextTokens, texts: Sequence[str]) -> TextTokens:
    """Replace one entity of each text by padding that stays unmasked: content words in a row, drawn at random.

    Args:
        tokens: Tokens of the texts.
        texts: Text of each expression.
    """
    if tokens.word_of is None:
        raise ValueError("DMMI's image-to-text decoder needs tokens.word_of, which LoadText provides.")
    spans = [(1, 0)] * len(tokens.ids)  # first and last word of each text's entity; nothing
    for row, text in dict(zip(tokens.text_of.tolist(), texts, strict=True)).items():
        runs = groupby(enumerate(text.split()), lambda word: is_content_word(word[1]))
        entities = [[number for number, _ in words] for is_content, words in runs if is_content]
        if entities:
            words = entities[int(torch.randint(len(entities), ()))]
            spans[row] = (words[0], words[-1])
    first, last = torch.tensor(spans, device=tokens.ids.device)[:, :, None].unbind(1)  # (U, 1) each
    erased = (tokens.word_of >= first) & (tokens.word_of <= last)
    return replace(tokens, ids=tokens.ids.masked_fill(erased, tokens.pad_id))
