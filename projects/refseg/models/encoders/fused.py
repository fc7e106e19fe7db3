"""The staged encoder loop: text stage i, vision stage i, fusion i, whose outputs go to both next stages.

Letters: B images, E expressions, U distinct texts, N = B or E rows, P = h * w pixels of a stage, L words, C channels of
a stage, D channels of words.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, with_sizes
from refseg.models.layers import level_mask
from refseg.ops import use_fast_linear
from refseg.registry import MODELS
from refseg.structures import Batch, EncodedFeatures, TextFeatures


def check_stage_api(vision: str | type) -> None:
    """Raise a ConfigError for an image encoder, such as `mmdet.ResNet`, that cannot be run stage by stage."""
    encoder = MODELS.get(vision) if isinstance(vision, str) else vision
    missing = [name for name in ("embed", "run_stage", "downsample", "norm") if not hasattr(encoder, name)]
    if encoder is not None and missing:
        raise ConfigError(
            f"encoder.vision: {vision!r} cannot be run stage by stage, which FusedEncoder needs to read words between "
            f"stages (missing: {', '.join(missing)}). Use SwinEncoder or ConvEncoder."
        )


@MODELS.register_module()
class FusedEncoder(BaseModule):
    """Text encoder, vision encoder and fusion, stage by stage.

    Until the first fusion, each image and each distinct text is encoded once. There they are gathered, one row per
    expression. Without a fusion nothing is gathered.

    Args:
        vision: An encoder with Swin's stage API (`SwinEncoder`).
        text: A `TextEncoder`. Its `stages` give the layers between two fusions. With one stage of all layers, as in
            LAVT and LGFormer, all fusions get words of the last layer. Stages beyond the vision's run at the end.
        fusion: A `Fusion` without its sizes, or None.
        fused_stages: Vision stages that are followed by a fusion.
        out_stages: Vision stages that the decoder uses.
    """

    def __init__(
        self,
        *,
        vision: dict,
        text: dict,
        fusion: dict | None = None,
        fused_stages: Sequence[int] = (0, 1, 2, 3),
        out_stages: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        if "out_stages" in vision:
            raise ConfigError("encoder.vision.out_stages is not allowed. Set encoder.out_stages instead.")
        check_stage_api(vision["type"])
        self.vision = MODELS.build({**vision, "out_stages": tuple(out_stages)})
        self.text = MODELS.build(text)
        self.out_stages = tuple(sorted(out_stages))
        self.fused_stages = tuple(sorted(fused_stages)) if fusion is not None else ()
        if not set(self.fused_stages) <= set(range(self.vision.num_stages)):
            raise ConfigError(
                f"encoder.fused_stages {fused_stages} must be stages of a vision encoder with {self.vision.num_stages}."
            )
        last = self.vision.num_stages - 1
        self.fusions = nn.ModuleDict(
            {
                str(stage): MODELS.build(
                    with_sizes(
                        "encoder.fusion",
                        fusion,
                        pixel_dim=self.vision.dims[stage],
                        word_dim=self.text.embed_dim,
                        feeds_next=stage < last,
                    )
                )
                for stage in self.fused_stages
            }
        )
        use_fast_linear(self)

    @property
    def level_dims(self) -> tuple[int, ...]:
        """Channels of the output levels."""
        return tuple(self.vision.dims[stage] for stage in self.out_stages)

    @property
    def word_dim(self) -> int:
        """Channels of the output words."""
        return self.text.embed_dim

    @property
    def shares_images(self) -> bool:
        """Whether pixels do not depend on words."""
        return not self.fused_stages

    def encode_images(self, batch: Batch) -> EncodedFeatures:
        """Encode images without words."""
        if not self.shares_images:
            raise TypeError("This encoder fuses words with pixels, so it cannot encode images alone.")
        pixels, size = self.vision.embed(batch.images)  # (B, P, C)
        levels: list[Tensor] = []
        masks: list[Tensor] = []
        for stage in range(self.vision.num_stages):
            pixels = self.vision.run_stage(stage, pixels, size)
            if stage in self.out_stages:
                levels.append(self._level(stage, pixels, size))
                masks.append(level_mask(batch.pixel_mask, size))
            if stage + 1 < self.vision.num_stages:
                pixels, size = self.vision.downsample(stage, pixels, size)
        return EncodedFeatures(levels, masks, self._strides, batch.image_of)

    def forward(self, batch: Batch) -> tuple[EncodedFeatures, TextFeatures]:
        """Return the levels of `out_stages`, fine to coarse, and the words after all stages."""
        if self.shares_images:
            return self.encode_images(batch), self.text(batch.tokens)
        words, bias = self.text.embed(batch.tokens)  # (U, L, D)
        word_mask, pixel_mask = batch.tokens.word_mask, batch.pixel_mask
        text_of: Tensor | None = batch.tokens.text_of
        image_of: Tensor | None = batch.image_of
        pixels, size = self.vision.embed(batch.images)  # (B, P, C)
        levels: list[Tensor] = []
        masks: list[Tensor] = []
        for stage in range(self.vision.num_stages):
            # Text stage and vision stage
            words = self._text_stage(stage, words, bias)
            pixels = self.vision.run_stage(stage, pixels, size)
            level = pixels
            # Fusion; from the first one on there is one row per expression
            if stage in self.fused_stages:
                if image_of is not None and text_of is not None:
                    words, bias, word_mask = (tensor.index_select(0, text_of) for tensor in (words, bias, word_mask))
                    pixels, pixel_mask = (tensor.index_select(0, image_of) for tensor in (pixels, pixel_mask))
                    levels, masks = ([t.index_select(0, image_of) for t in tensors] for tensors in (levels, masks))
                    text_of = image_of = None
                mask = level_mask(pixel_mask, size).flatten(1) if batch.is_padded else None
                level, pixels, words = self.fusions[str(stage)](pixels, words, word_mask=word_mask, pixel_mask=mask)
            # Output level, and the step to the next stage
            if stage in self.out_stages:
                levels.append(self._level(stage, level, size))
                masks.append(level_mask(pixel_mask, size))
            if stage + 1 < self.vision.num_stages:
                pixels, size = self.vision.downsample(stage, pixels, size)
        for stage in range(self.vision.num_stages, self.text.num_stages):
            words = self._text_stage(stage, words, bias)
        return EncodedFeatures(levels, masks, self._strides, image_of), TextFeatures(words, word_mask, text_of)

    @property
    def _strides(self) -> tuple[int, ...]:
        return tuple(self.vision.strides[stage] for stage in self.out_stages)

    def _level(self, stage: int, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalize and reshape pixels (N, P, C) to a level (N, C, h, w) for the decoder."""
        return self.vision.norm(stage, pixels).transpose(1, 2).unflatten(2, size)

    def _text_stage(self, stage: int, words: Tensor, bias: Tensor) -> Tensor:
        if stage >= self.text.num_stages:
            return words
        words = self.text.run_stage(stage, words, bias)
        return self.text.finish(words) if stage + 1 == self.text.num_stages else words
