"""BEiT-3 (Wang et al. 2022, "Image as a Foreign Language"): pixels and words are encoded together, layer by layer.

Letters: B images, E expressions, U distinct texts, P = h * w patches, L words, T = 1 + P + L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refseg.errors import ConfigError, check_choice
from refseg.models.encoders.multiway import Multiway, MultiwayLayer, Streams, init_multiway
from refseg.models.encoders.text import check_token_ids
from refseg.models.layers import level_mask, pixel_centers, upsampler, waves
from refseg.ops import use_fast_linear
from refseg.registry import MODELS
from refseg.structures import Batch, EncodedFeatures, TextFeatures, TextTokens

FIRST = 2  # first row of a position table in use; the rows before are padding
PREFIX = FIRST + 1  # rows of the pixels' position table before the patches: padding and the class token

FirstPositions = Literal["noise", "waves"]
Between = Callable[[int, Streams], Streams]


@dataclass(frozen=True, slots=True)
class BEiT3Arch:
    """Sizes of a BEiT-3. `text_positions`: rows of the words' position table, two of which are padding."""

    embed_dim: int
    num_layers: int
    num_heads: int
    ffn_ratio: int = 4
    vocab_size: int = 64010
    text_positions: int = 1024

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"BEiT3Encoder.arch: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}."
            )


ARCHS = {"base": BEiT3Arch(768, 12, 12), "large": BEiT3Arch(1024, 24, 16)}


def beit3_arch(arch: str | Mapping) -> BEiT3Arch:
    """Return a named architecture, or one from a dict with fields of `BEiT3Arch`."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ConfigError(f"Unknown BEiT3Encoder.arch {arch!r}. Valid: {', '.join(ARCHS)}, or a dict.")
        return ARCHS[arch]
    names = [field.name for field in fields(BEiT3Arch)]
    if not {"embed_dim", "num_layers", "num_heads"} <= set(arch) <= set(names):
        raise ConfigError(
            f"BEiT3Encoder.arch: valid keys are {', '.join(names)}; the first three are required. Got {arch}."
        )
    return BEiT3Arch(**arch)


def resize_positions(table: Tensor, size: tuple[int, int], old_size: tuple[int, int] | None = None) -> Tensor:
    """Resize the pixels' position table (3 + P, C) to another grid by bicubic interpolation of the patches' rows.

    Args:
        table: The position table.
        size: The new (h, w).
        old_size: The old (h, w); a square if None.
    """
    from timm.layers import resample_abs_pos_embed  # here, because it imports torch.compile

    resized = resample_abs_pos_embed(
        table[None], list(size), old_size and list(old_size), num_prefix_tokens=PREFIX, antialias=False
    )
    return resized[0]


@MODELS.register_module()
class BEiT3Encoder(BaseModule):
    """BEiT-3 as an encoder of pixel levels and words, one row per expression.

    Words and pixels interact from the first layer on, so expressions share only the patch embeddings of their image. A
    model with its own steps inside the layers calls `embed`, `run` with `between`, which is called between the
    attention and the feed-forward part of each layer, and `levels`. Calling the module does all of it.

    Padding is masked in attention, and all other layers work per token, so padding does not change the results.

    Args:
        arch: base, large, or a dict with fields of `BEiT3Arch`.
        image_size: Image size of the position table. For other sizes, positions are interpolated in each forward pass.
        patch_size: Side of a patch.
        first_positions: Initial positions of patches: "noise" of width 0.02, as in BEiT-3, or "waves" over the image of
            about the size of a patch embedding. From random weights, a model takes long to tell positions from noise.
        drop_path_rate: Drop path rate of the last layer. It increases linearly from the first layer.
        level_scales: Resolutions of the levels relative to the patches, fine to coarse, as powers of two. All are made
            from the last layer by transposed convolutions, as in ViTDet's simple pyramid (Li et al. 2022); each
            doubling halves the channels. 1 is the patches themselves.
        pretrained: Official weights (.pth, .zip or .safetensors), loaded when training starts (`init_weights`).
        checkpointing: Recompute layers in the backward pass, which saves memory and costs time.
    """

    one_size = "BEiT-3's table of positions is resized for one image size."

    def __init__(
        self,
        *,
        arch: str | dict = "base",
        image_size: int = 480,
        patch_size: int = 16,
        first_positions: FirstPositions = "noise",
        drop_path_rate: float = 0.1,
        level_scales: Sequence[int] = (1,),
        pretrained: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.arch = shape = beit3_arch(arch)
        dim = shape.embed_dim
        if image_size % patch_size:
            raise ConfigError(f"BEiT3Encoder.image_size {image_size} is not a multiple of patch_size {patch_size}.")
        check_choice("encoder.first_positions", first_positions, get_args(FirstPositions))
        scales = sorted(level_scales, reverse=True)
        invalid = any(s < 1 or s & (s - 1) or patch_size % s or dim % s for s in scales)
        if not scales or invalid or scales != list(level_scales):
            raise ConfigError(
                f"BEiT3Encoder.level_scales {tuple(level_scales)} must be powers of two that divide patch_size, in "
                "descending order: from fine to coarse."
            )
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.patch_size, self.pretrained, self.checkpointing = patch_size, pretrained, checkpointing
        self.strides = tuple(patch_size // scale for scale in level_scales)
        self.embed_dim = self.word_dim = dim
        self.level_dims = tuple(dim // scale for scale in level_scales)
        self.vocab_size = shape.vocab_size
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.text_embed = nn.Embedding(shape.vocab_size, dim)
        rows = dict(vision=PREFIX + self.grid[0] * self.grid[1], language=shape.text_positions)
        self.positions = nn.ModuleDict({stream: nn.Embedding(number, dim) for stream, number in rows.items()})
        for weight in (self.class_token, self.text_embed.weight, *self.positions.parameters()):
            nn.init.trunc_normal_(weight, std=0.02)
        if first_positions == "waves":
            encoding = waves(pixel_centers([self.grid], torch.device("cpu")))  # (P, 16)
            self.positions["vision"].weight.data[PREFIX:] = encoding @ torch.randn(encoding.shape[1], dim) / 4
        rates = [drop_path_rate * layer / max(shape.num_layers - 1, 1) for layer in range(shape.num_layers)]
        ffn_dim = shape.ffn_ratio * dim
        self.layers = nn.ModuleList(MultiwayLayer(dim, shape.num_heads, ffn_dim, drop_path=rate) for rate in rates)
        init_multiway(self.layers)
        self.norm = Multiway(lambda: nn.LayerNorm(dim))
        self.pyramid = nn.ModuleList(upsampler(dim, dim // scale, scale) for scale in level_scales)
        use_fast_linear(self)

    def init_weights(self) -> None:
        """Load `pretrained`, once. Without it, the constructor's weights stay."""
        if not self.is_init and self.pretrained is not None:
            from refseg.models.encoders.beit3_weights import load_official_beit3

            load_official_beit3(self, self.pretrained)
        self.is_init = True

    def embed_words(self, tokens: TextTokens) -> Tensor:
        """Return word embeddings (U, L, C) without positions."""
        check_token_ids(tokens, self.vocab_size)
        return self.text_embed(tokens.ids)

    def word_positions(self, length: int) -> Tensor:
        """Return the positions (L, C) of a text's tokens."""
        most = self.arch.text_positions - FIRST
        if length > most:
            raise ValueError(
                f"A text has {length} tokens, but BEiT-3 has positions for {most}. Lower the tokenizer's max_words."
            )
        return self.positions["language"].weight[FIRST : FIRST + length]

    def pixel_positions(self, size: tuple[int, int]) -> Tensor:
        """Return the positions (1 + P, C) of the class token and of (h, w) patches."""
        return resize_positions(self.positions["vision"].weight, size, self.grid)[FIRST:]

    def embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) -> patches (B, P, C) without positions, and their (h, w)."""
        patches = self.patch_embed(images)
        return patches.flatten(2).transpose(1, 2), (patches.shape[-2], patches.shape[-1])

    def embed(self, batch: Batch, class_token: Tensor | None = None) -> tuple[Streams, Tensor, tuple[int, int]]:
        """Embed patches and words of each expression.

        Args:
            batch: The batch.
            class_token: (E, 1, C), replaces the pixels' own class token.

        Returns:
            The streams of E rows, the mask of valid tokens (E, T), and (h, w).
        """
        # Pixels: class token and patches, with positions
        patches, size = self.embed_patches(batch.images)
        if class_token is None:
            class_token = self.class_token.expand(batch.num_expressions, -1, -1)
        positions = self.pixel_positions(size)
        patches = (patches + positions[1:]).index_select(0, batch.image_of)
        # Words, with positions
        words = self.embed_words(batch.tokens)
        words = (words + self.word_positions(words.shape[1])).index_select(0, batch.tokens.text_of)
        # Mask of valid tokens
        image = level_mask(batch.pixel_mask, size).flatten(1).index_select(0, batch.image_of)  # (E, P)
        text = batch.tokens.word_mask.index_select(0, batch.tokens.text_of)
        valid = torch.cat([torch.ones_like(image[:, :1]), image, text], 1)
        return Streams(torch.cat([class_token + positions[:1], patches], 1), words), valid, size

    def run(
        self, streams: Streams, valid: Tensor, *, word_valid: Tensor | None = None, between: Between | None = None
    ) -> Streams:
        """Run all layers and the last norm.

        Args:
            streams: Output of `embed`.
            valid: (E, T), True on tokens that may be attended to.
            word_valid: (E, L, T), the same for each word, if words differ.
            between: Called as `between(layer, streams)` after the attention of every layer.
        """
        for number, layer in enumerate(self.layers):
            arguments: Any = (streams, valid, word_valid, between and partial(between, number))
            if self.checkpointing and torch.is_grad_enabled():
                streams = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                streams = layer(*arguments)
        return self.norm(streams)

    def levels(self, streams: Streams, batch: Batch, size: tuple[int, int]) -> EncodedFeatures:
        """Make levels of the output of `run`."""
        patches = streams.pixels[:, 1:].transpose(1, 2).unflatten(2, size)  # (E, C, h, w)
        levels = [scale(patches) for scale in self.pyramid]
        masks = [level_mask(batch.pixel_mask, (x.shape[-2], x.shape[-1])) for x in levels]
        return EncodedFeatures(levels, [mask.index_select(0, batch.image_of) for mask in masks], self.strides, None)

    def forward(self, batch: Batch) -> tuple[EncodedFeatures, TextFeatures]:
        streams, valid, size = self.embed(batch)
        streams = self.run(streams, valid)
        words = TextFeatures(streams.words, valid[:, streams.pixels.shape[1] :], None)
        return self.levels(streams, batch, size), words
