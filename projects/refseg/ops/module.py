"""The attention module of Deformable DETR (section 4.1) around `deformable_attention`.

It has the constructor arguments, parameters, and initialization of mmcv's `MultiScaleDeformableAttention`, so the state
dicts are the same and mmdet's layers can use it. It needs no compiled mmcv, and its backend can be chosen.

Letters: B images, Q queries, C channels, H heads, L levels, P points, S pixels of all levels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.ops.deformable_attention import deformable_attention


class MultiScaleDeformableAttention(BaseModule):
    """Multi-scale deformable attention with its four projections, dropout and residual.

    Args:
        embed_dims: Channels C of queries and output, a multiple of `num_heads`.
        num_heads: Number of heads H.
        num_levels: Number of levels L.
        num_points: Number of points P.
        im2col_step: Ignored; an argument of mmcv's class.
        dropout: Dropout of the output, before the residual is added.
        batch_first: Tensors are (B, Q, C), not (Q, B, C).
        norm_cfg: Ignored; an argument of mmcv's class.
        init_cfg: mmengine's; `init_weights` initializes the parameters in any case.
        value_proj_ratio: Channels of the projected value, as a fraction of C.
        backend: See `deformable_attention`.
    """

    backend: str | None = None

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        value_proj_ratio: float = 1.0,
        backend: str | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)  # by name, because in `_mmcv_module` mmcv's class is in between
        value_dims = int(embed_dims * value_proj_ratio)
        if embed_dims % num_heads or value_dims % num_heads:
            raise ValueError(
                f"embed_dims {embed_dims} and the value's {value_dims} channels must be multiples of "
                f"num_heads {num_heads}"
            )
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.batch_first, self.backend = batch_first, backend
        self.dropout = nn.Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dims, value_dims)
        self.output_proj = nn.Linear(value_dims, embed_dims)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Point p of head h looks p + 1 pixels into the direction 2 pi h / H, with equal weights (appendix A.4)."""
        offsets = self.sampling_offsets
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (H, 2)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)  # onto the square
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = direction[:, None, None, :] * steps[None, None, :, None]  # (H, 1, P, 2)
        offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())
        for weight in (offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self._is_init = True

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | Sequence[Sequence[int]] | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend with mmcv's arguments. `key`, `level_start_index`, and further keywords of mmdet have no effect.

        Args:
            query: (Q, B, C), or (B, Q, C) if `batch_first`.
            value: (S, B, C) or (B, S, C); by default the query.
            identity: The residual; by default the query without `query_pos`.
            query_pos: Position embedding with the shape of the query.
            key_padding_mask: (B, S), True on pixels that count as zero.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), from 0 to 1.
            spatial_shapes: (L, 2), the (h, w) of each level, as a tensor or as numbers, which a compiler can trace.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("MultiScaleDeformableAttention needs reference_points and spatial_shapes")
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)

        # Project the values; padding becomes zero.
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None].bool(), 0)

        # Read values at the sampling locations of each query, and weight them.
        taps = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*taps, 2))  # (B, Q, H, L, P, 2)
        weights = self.attention_weights(query).unflatten(-1, (taps[0], -1)).softmax(-1)  # (B, Q, H, L * P)
        out = deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            sampling_locations(reference_points, offsets, spatial_shapes),
            weights.unflatten(-1, taps[1:]),
            backend=self.backend,
        )

        # Project the output and add the residual.
        out = self.output_proj(out)  # (B, Q, C)
        if not self.batch_first:
            out = out.transpose(0, 1)
        return self.dropout(out) + identity


def sampling_locations(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor | Sequence[Sequence[int]]
) -> Tensor:
    """Return (B, Q, H, L, P, 2) locations: reference points (B, Q, L, 2) plus offsets in pixels, or the centers of
    reference boxes (B, Q, L, 4) plus offsets in half box sizes, divided by P."""
    center = reference_points[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
    if reference_points.shape[-1] == 2:
        size = torch.as_tensor(spatial_shapes, device=offsets.device).flip(-1)  # (L, 2): w, h
        return center + offsets / size[:, None]
    if reference_points.shape[-1] == 4:
        return center + offsets / offsets.shape[4] * reference_points[:, :, None, :, None, 2:] * 0.5
    raise ValueError(f"reference_points must have 2 or 4 coordinates, got {reference_points.shape[-1]}")


def use_refseg_deformable_attention(module: nn.Module, backend: str | None = None) -> int:
    """Turn every mmcv `MultiScaleDeformableAttention` in `module` into ours, in place; return their number.

    Parameters, hooks, training state, and state-dict keys stay. mmdet still recognizes the modules as mmcv's, which
    `MSDeformAttnPixelDecoder.init_weights` needs to initialize them. Subclasses of mmcv's class do not change.
    """
    theirs = sys.modules.get("mmcv.ops.multi_scale_deform_attn")
    if theirs is None:  # never imported, so `module` has none
        return 0
    from refseg.ops._mmcv_module import InMmcv

    attentions: list[Any] = [m for m in module.modules() if type(m) is theirs.MultiScaleDeformableAttention]
    for attention in attentions:
        attention.__class__ = InMmcv
        attention.backend = backend
    return len(attentions)
