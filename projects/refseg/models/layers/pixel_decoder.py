"""Mask2Former's pixel decoder (Cheng et al. 2022, section 3.2.1), built from mmdet's modules, with padding masked.

Letters: B rows (images, or expressions if the encoder fuses words), C channels, D channels of the mask features, S_i
pixels of level i, (h, w) the size of the mask features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.layers.levels import flatten_levels, pixel_centers, sine_position, split_levels
from refseg.ops import use_fast_linear
from refseg.structures import EncodedFeatures


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder.

    `mask_feats` (B, D, h, w). From coarse to fine: `levels` (B, S_i, C), their `positions` (B, S_i, C), and `masks` (B,
    h_i, w_i), True on the image. `padded`: whether the input has padding.
    """

    mask_feats: Tensor
    levels: list[Tensor]
    positions: list[Tensor]
    masks: list[Tensor]
    padded: bool

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h_i, w_i) of each level."""
        return [(mask.shape[-2], mask.shape[-1]) for mask in self.masks]


def check_width(name: str, embed_dim: int, num_heads: int) -> None:
    """Raise ConfigError if the width of a pixel decoder, the value of the key `name`, does not suit its parts."""
    for divisor, part in ((4, "sine positions"), (min(32, embed_dim), "GroupNorm"), (num_heads, "heads")):
        if embed_dim % divisor:
            raise ConfigError(f"{name} {embed_dim} must be a multiple of {divisor} ({part}).")


class PixelDecoder(BaseModule):
    """mmdet's `MSDeformAttnPixelDecoder` with another forward pass, which masks padding.

    Without padding, the results are mmdet's.

    Args:
        level_dims: Channels of the encoder's four levels, fine to coarse.
        embed_dim: C.
        mask_dim: D.
        num_layers: Layers of deformable attention over the three coarser levels; 6 in the paper.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forward networks.
        num_points: Sampling points per head and level.
        finest_relu: Finest level as in DeRIS's code: a ReLU after the norm of its first convolution, too, and biases in
            both convolutions.
    """

    def __init__(
        self,
        *,
        level_dims: Sequence[int],
        embed_dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_points: int = 4,
        finest_relu: bool = False,
    ) -> None:
        super().__init__()
        from mmdet.models.layers import MSDeformAttnPixelDecoder  # takes seconds to import

        from refseg.ops.module import use_refseg_deformable_attention

        check_width("pixel_decoder.embed_dim", embed_dim, num_heads)
        if len(level_dims) != 4:
            raise ConfigError(f"PixelDecoder needs four encoder levels, got {len(level_dims)}. Set encoder.out_stages.")
        self.embed_dim, self.mask_dim, self.finest_relu = embed_dim, mask_dim, finest_relu
        attention = dict(
            embed_dims=embed_dim,
            num_heads=num_heads,
            num_levels=3,
            num_points=num_points,
            dropout=0.0,
            batch_first=True,
        )
        ffn = dict(embed_dims=embed_dim, feedforward_channels=ffn_dim, num_fcs=2, ffn_drop=0.0)
        self.mmdet_decoder = MSDeformAttnPixelDecoder(
            in_channels=list(level_dims),
            feat_channels=embed_dim,
            out_channels=mask_dim,
            norm_cfg=dict(type="GN", num_groups=min(32, embed_dim)),
            encoder=ConfigDict(num_layers=num_layers, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
            positional_encoding=dict(num_feats=embed_dim // 2, normalize=True),
        )
        if finest_relu:
            for module in (self.mmdet_decoder.lateral_convs[0], self.mmdet_decoder.output_convs[0]):
                module.conv.bias = torch.nn.Parameter(torch.zeros(embed_dim))
        use_refseg_deformable_attention(self)
        use_fast_linear(self)

    def forward(self, features: EncodedFeatures, *, padded: bool) -> PixelFeatures:
        """Decode the levels; `padded` says whether the input has padding."""
        # Project the three coarser levels and flatten them into one sequence
        decoder = self.mmdet_decoder
        maps, masks = features.levels[:0:-1], features.masks[:0:-1]  # coarse to fine, without the finest
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        pixels = flatten_levels(
            [conv(level) for conv, level in zip(decoder.input_convs, maps, strict=True)]
        )  # (B, S, C)
        # Positions: sines plus an embedding of the level
        positions = [sine_position(mask, self.embed_dim).to(pixels.dtype) for mask in masks]
        embeds = decoder.level_encoding.weight
        query_pos = torch.cat([position + embed for position, embed in zip(positions, embeds, strict=True)], 1)
        # Deformable self-attention over all levels
        padding = ~torch.cat([mask.flatten(1) for mask in masks], 1) if padded else None
        centers = pixel_centers(sizes, pixels.device)[None, :, None].expand(pixels.shape[0], -1, 3, -1)
        for layer in decoder.encoder.layers:
            pixels = layer(
                pixels, query_pos=query_pos, key_padding_mask=padding, spatial_shapes=sizes, reference_points=centers
            )
        # Mask features: add the upsampled result to the finest encoder level
        lateral = decoder.lateral_convs[0](features.levels[0])
        if self.finest_relu:
            lateral = F.relu(lateral)
        finest = split_levels(pixels, sizes)[-1]
        up = F.interpolate(finest, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        mask_feats = decoder.mask_feature(decoder.output_convs[0](lateral + up))
        levels = list(pixels.split([height * width for height, width in sizes], 1))
        return PixelFeatures(mask_feats, levels, positions, masks, padded)
