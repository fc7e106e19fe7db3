"""Multi-scale deformable attention by a compiled mmcv that fits this PyTorch (CUDA only)."""

from __future__ import annotations

import functools
import importlib
import math

import torch
from torch import Tensor


@functools.cache
def why_not_compiled() -> str:
    """Return why mmcv's compiled operators cannot be used here; empty if they can."""
    try:
        ext = importlib.import_module("mmcv._ext")
    except ImportError as error:
        return f"mmcv has no compiled extension here ({error})"
    if getattr(ext, "__refseg_stand_in__", False):
        return str(getattr(ext, "reason", "this mmcv has no compiled extension"))
    if not hasattr(ext, "ms_deform_attn_forward"):
        return "this mmcv was compiled without ms_deform_attn_forward"
    return ""


def deformable_attention(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Compute the attention with mmcv's CUDA kernels, which need full groups of images and have no bf16."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    images, queries, channels = value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]
    if images * queries == 0:
        return value.new_zeros(images, queries, channels) + 0 * value.sum()
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
    shapes = spatial_shapes.to(torch.int64)
    areas = shapes.prod(1)
    group = math.gcd(images, 64)
    wide, locations, weights = (x.to(dtype).contiguous() for x in (value, sampling_locations, attention_weights))
    starts = areas.cumsum(0) - areas
    out = MultiScaleDeformableAttnFunction.apply(wide, shapes.contiguous(), starts, locations, weights, group)
    return out.to(value.dtype)
