"""Layers that several methods share: plain functions and thin modules."""

from refseg.models.layers.attention import (
    Attention,
    AttentionLayer,
    feed_forward,
    init_mask2former,
    masked_mean,
    masked_softmax,
    mlp,
)
from refseg.models.layers.convolution import JoinLevels, ResidualBlock, upsampler
from refseg.models.layers.groups import Groups
from refseg.models.layers.levels import (
    flatten_levels,
    level_mask,
    pixel_centers,
    sine_position,
    split_levels,
    waves,
)
from refseg.models.layers.pixel_decoder import PixelDecoder, PixelFeatures, check_width
from refseg.models.layers.queries import DecodedQueries, QueryHeads, pixel_attn_mask

__all__ = [
    "Attention",
    "AttentionLayer",
    "DecodedQueries",
    "Groups",
    "JoinLevels",
    "PixelDecoder",
    "PixelFeatures",
    "QueryHeads",
    "ResidualBlock",
    "check_width",
    "feed_forward",
    "flatten_levels",
    "init_mask2former",
    "level_mask",
    "masked_mean",
    "masked_softmax",
    "mlp",
    "pixel_centers",
    "pixel_attn_mask",
    "sine_position",
    "waves",
    "split_levels",
    "upsampler",
]
