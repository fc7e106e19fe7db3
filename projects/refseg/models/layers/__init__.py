"""Parts that several models share: plain functions and thin modules."""

from refseg.models.layers.attention import Attention, feed_forward, masked_mean, mlp
from refseg.models.layers.levels import flatten_levels, level_mask, split_levels
from refseg.models.layers.position import pixel_centres, sine_position

__all__ = [
    "Attention",
    "feed_forward",
    "flatten_levels",
    "level_mask",
    "masked_mean",
    "mlp",
    "pixel_centres",
    "sine_position",
    "split_levels",
]
