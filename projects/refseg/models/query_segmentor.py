"""Base class of methods whose queries attend to the levels of a pixel decoder (InstAlign, ReLA)."""

from __future__ import annotations

from typing import Any, ClassVar

from refseg.errors import with_sizes
from refseg.models.layers import Groups, PixelDecoder, PixelFeatures
from refseg.models.segmentor import RefSegmentor
from refseg.structures import Batch, TextFeatures


class QuerySegmentor(RefSegmentor):
    """An encoder and a pixel decoder. Without fusion in the encoder, both run once per image."""

    config_groups: ClassVar[dict[str, type]] = {**RefSegmentor.config_groups, "pixel_decoder": PixelDecoder}

    def __init__(
        self, *, encoder: dict, pixel_decoder: dict | None, embed_dim: int, mask_dim: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = self.build_encoder(encoder)
        settings = {"embed_dim": embed_dim, **(pixel_decoder or {})}
        self.pixel_decoder = PixelDecoder(
            **with_sizes("pixel_decoder", settings, level_dims=self.encoder.level_dims, mask_dim=mask_dim)
        )

    @property
    def shares_images(self) -> bool:
        return getattr(self.encoder, "shares_images", False)

    def encode_images(self, batch: Batch) -> PixelFeatures:
        return self.pixel_decoder(self.encoder.encode_images(batch), padded=batch.is_padded)

    def encode(self, batch: Batch, images: PixelFeatures | None) -> tuple[PixelFeatures, TextFeatures, Groups]:
        """Return pixels, words, and the expressions by rows of pixels; `images` as in `infer_encoded`."""
        groups = Groups.of(batch, shared=images is not None)
        if images is not None:
            return images, self.encoder.text(batch.tokens), groups
        features, text = self.encoder(batch)
        return self.pixel_decoder(features, padded=batch.is_padded), text, groups
