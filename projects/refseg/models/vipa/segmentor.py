"""VIPA (Cho et al., "Visual Informative Part Attention for Referring Image Segmentation").

Letters: B images, E expressions, L tokens of the expression, P = h * w pixels of the coarsest level, C its channels, D
channels of words, T tokens of the key-value set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.layers import AttentionLayer, Groups, flatten_levels, level_mask
from refseg.models.losses import merged_mask_losses
from refseg.models.segmentor import RefSegmentor
from refseg.models.vipa.decoder import PartAttentionDecoder
from refseg.models.vipa.generator import AllPixelsGenerator, VisualExpression, VisualExpressionGenerator
from refseg.models.vipa.retrieval import Cues, cue_mask
from refseg.models.vipa.supervision import RELEVANCE_LOSSES, ScaleBias, Supervision, relevant_pixels
from refseg.registry import MODELS
from refseg.structures import Batch, EncodedFeatures, Prediction, RegionPrediction

KeyValues = Literal["visual", "language"]


@MODELS.register_module()
class VIPA(RefSegmentor):
    """Pixels attend to a key-value set made of the image's informative parts, which the words retrieve.

    Loss: BCE and dice of the mask at the input's size, and eq. 4 of the retrieval scores.

    Args:
        encoder: Any encoder that returns levels, fine to coarse, and words, with `level_dims` and `word_dim`. The
            paper's default is a `FusedEncoder` with `StagedCrossAttention`; Table VII has late and no fusion, too.
        key_values: Keys and values of the decoder (Table V): "visual", the visual expression, or "language", the
            encoder's words. The latter are "vanilla" or "advanced", depending on whether they attend to pixels.
        word_layers: Transformer layers of the words between encoder and retrieval; none in the paper's model. Rows of
            its tables that leave a part out have unspecified "more layers" to keep the size.
        num_heads: Heads of all attention outside the encoder. The paper does not give them.
        cues: The tokens that retrieve (`Cues`).
        generator: Arguments of `VisualExpressionGenerator`, without sizes and heads. Without cues, those of retrieval
            have no effect (`AllPixelsGenerator`).
        decoder: Arguments of `PartAttentionDecoder`, without sizes and heads.
        supervision: Kind and weights of the losses (`Supervision`).
    """

    one_size = "The number of pixels that a word retrieves is rounded for one image size."
    config_groups: ClassVar[dict[str, type]] = {
        **RefSegmentor.config_groups,
        "cues": Cues,
        "generator": VisualExpressionGenerator,
        "decoder": PartAttentionDecoder,
        "supervision": Supervision,
    }

    def __init__(
        self,
        *,
        encoder: dict,
        key_values: KeyValues = "visual",
        word_layers: int = 0,
        num_heads: int = 8,
        cues: dict | None = None,
        generator: dict | None = None,
        decoder: dict | None = None,
        supervision: dict | None = None,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        check_choice("key_values", key_values, get_args(KeyValues))
        self.cues, self.supervision = Cues(**(cues or {})), Supervision(**(supervision or {}))
        retrieves = key_values == "visual" and self.cues.any
        if key_values == "language" and (cues or generator):
            raise ConfigError("key_values='language' has no visual expression. Set cues and generator to None.")
        if self.supervision.scores is not None and not retrieves:
            raise ConfigError("Without retrieval there are no scores to supervise. Set supervision.scores to None.")
        self.encoder = self.build_encoder(encoder)
        level_dims, word_dim = self.encoder.level_dims, self.encoder.word_dim
        self.word_layers = nn.ModuleList(AttentionLayer(word_dim, num_heads, 4 * word_dim) for _ in range(word_layers))
        sizes = dict(pixel_dim=level_dims[-1], word_dim=word_dim, num_heads=num_heads)
        self.generator = None
        if retrieves:
            self.generator = VisualExpressionGenerator(**sizes, **(generator or {}))
        elif key_values == "visual":
            refinement = {key: value for key, value in (generator or {}).items() if key in ("refine", "ffn_ratio")}
            self.generator = AllPixelsGenerator(**sizes, **refinement)
        self.decoder = PartAttentionDecoder(
            **(decoder or {}), level_dims=level_dims, token_dim=word_dim, num_heads=num_heads
        )
        self.scale_bias = ScaleBias() if self.supervision.scale_bias else nn.Identity()

    @property
    def shares_images(self) -> bool:
        return getattr(self.encoder, "shares_images", False)

    def encode_images(self, batch: Batch) -> EncodedFeatures:
        return self.encoder.encode_images(batch)

    def infer_encoded(self, batch: Batch, images: EncodedFeatures | None) -> Prediction:
        # Encode pixels and words
        if images is None:
            features, text = self.encoder(batch)
        else:
            features, text = replace(images, image_of=batch.image_of), self.encoder.text(batch.tokens)
        words, word_mask = text.per_expression()  # (E, L, D), (E, L)
        for layer in self.word_layers:
            words = layer(words, words, word_mask)
        # Key-value set, and masks
        expression = self._key_values(batch, features, words, word_mask)
        features = features.per_expression()
        masks = features.masks if batch.is_padded else None
        logits = self.decoder(features.levels, masks, expression.tokens, expression.valid)  # (E, H / 4, W / 4)
        if expression.scores is None:
            return Prediction(logits)
        # Scores of [CLS] for the loss, regions of words for analysis and drawing
        size = features.levels[-1].shape[-2:]
        scores, retrieved = (x.unflatten(-1, size) for x in (expression.scores, expression.retrieved))  # (E, L, h, w)
        regions = RegionPrediction(scores, (retrieved > 0.5) & expression.valid[..., None, None])
        return Prediction(logits, regions=None if self.training else regions, auxiliary=scores[:, 0])

    def _key_values(
        self, batch: Batch, features: EncodedFeatures, words: Tensor, word_mask: Tensor
    ) -> VisualExpression:
        """Return the decoder's key-value set from words (E, L, D), without copying pixels that expressions share."""
        if self.generator is None:
            return VisualExpression(words, word_mask)
        pixels = flatten_levels(features.levels[-1:])
        pixel_mask = features.masks[-1].flatten(1) if batch.is_padded else None
        if self.cues.any:
            cues, groups = cue_mask(batch, word_mask, self.cues), Groups.of(batch, shared=features.image_of is not None)
            return self.generator(pixels, pixel_mask, words, cues, image_of=features.image_of, groups=groups)
        if features.image_of is not None:
            raise ConfigError(
                "Nothing in this model reads the words. Set encoder.fusion, or cues.global_cue or cues.local_cues."
            )
        return self.generator(pixels, pixel_mask)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        masks = batch.merged_masks()  # (E, H, W)
        weights = self.supervision
        bce, dice = merged_mask_losses(prediction.mask_logits, masks, batch)
        losses = {"loss_mask": weights.mask * bce, "loss_dice": weights.dice * dice}
        if weights.scores is not None:
            scores: Tensor = prediction.auxiliary  # (E, h, w)
            size = (scores.shape[-2], scores.shape[-1])
            relevant = relevant_pixels(masks, size, weights.relevant_share)
            valid = level_mask(batch.pixel_mask, size)[batch.image_of] if batch.is_padded else None
            relevance = RELEVANCE_LOSSES[weights.scores](self.scale_bias(scores), relevant, valid)
            losses["loss_relevance"] = weights.relevance * relevance
        return losses
