"""The attention module of Deformable DETR (section 4.1) around `deformable_attention`.

It has the constructor arguments, the parameters and the initialisation of mmcv's `MultiScaleDeformableAttention`, so
that the state dicts are the same and mmdet's layers can use it: no compiled mmcv is needed, and backends can be chosen.

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
        embed_dims: channels C of queries and output; a multiple of `num_heads`.
        num_heads, num_levels, num_points: H, L and P.
        im2col_step, norm_cfg: taken for mmcv's sake; nothing here depends on them.
        dropout: on the output, before the residual is added.
        batch_first: tensors are (B, Q, C) rather than (Q, B, C).
        init_cfg: mmengine's; parameters are initialised by `init_weights` in any case.
        value_proj_ratio: channels of the projected value, as a share of C.
        backend: see `deformable_attention`.
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
        BaseModule.__init__(self, init_cfg)  # by name: `_mmcv_module` has mmcv's class between the two
        value_dims = int(embed_dims * value_proj_ratio)
        if embed_dims % num_heads or value_dims % num_heads:
            raise ValueError(
                f"embed_dims {embed_dims} and the value's {value_dims} channels must be multiples of "
                f"num_heads {num_heads}"
            )
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.im2col_step, self.norm_cfg = im2col_step, norm_cfg
        self.batch_first, self.backend = batch_first, backend
        self.dropout = nn.Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dims, value_dims)
        self.output_proj = nn.Linear(value_dims, embed_dims)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Head h looks into the direction 2 pi h / H, its point p at p + 1 pixels (appendix A.4); all weights alike."""
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
        """mmcv's arguments; `key`, `level_start_index` and what else mmdet's layers pass have no effect.

        Args:
            query: (Q, B, C), or (B, Q, C) if `batch_first`.
            value: (S, B, C), or (B, S, C); the query by default.
            identity: the residual; the query, before `query_pos` is added, by default.
            query_pos: as the query.
            key_padding_mask: (B, S), True on pixels that count as zero.
            reference_points: (B, Q, L, 2) points, or (B, Q, L, 4) boxes (cx, cy, w, h), in 0 to 1.
            spatial_shapes: (L, 2), each level's (h, w); a tensor, or numbers, which a compiler can follow.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("MultiScaleDeformableAttention needs reference_points and spatial_shapes")
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None].bool(), 0)
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
        out = self.output_proj(out)  # (B, Q, C)
        if not self.batch_first:
            out = out.transpose(0, 1)
        return self.dropout(out) + identity


def sampling_locations(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor | Sequence[Sequence[int]]
) -> Tensor:
    """Offsets (B, Q, H, L, P, 2), in pixels around points (B, Q, L, 2) or in half boxes over P around (B, Q, L, 4)."""
    center = reference_points[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
    if reference_points.shape[-1] == 2:
        size = torch.as_tensor(spatial_shapes, device=offsets.device).flip(-1)  # (L, 2): w, h
        return center + offsets / size[:, None]
    if reference_points.shape[-1] == 4:
        return center + offsets / offsets.shape[4] * reference_points[:, :, None, :, None, 2:] * 0.5
    raise ValueError(f"reference_points must have 2 or 4 coordinates, got {reference_points.shape[-1]}")


def use_refseg_deformable_attention(module: nn.Module, backend: str | None = None) -> int:
    """Makes every mmcv `MultiScaleDeformableAttention` in `module` one of ours; returns how many there were.

    The modules change their class in place: parameters, hooks, training state and the state dict's keys stay, and so
    do the places that hold them. mmdet still recognises them as mmcv's, which `MSDeformAttnPixelDecoder.init_weights`
    relies on to initialise them; subclasses of mmcv's class with a forward of their own are left alone.
    """
    theirs = sys.modules.get("mmcv.ops.multi_scale_deform_attn")
    if theirs is None:  # never imported, hence nowhere in `module`
        return 0
    from refseg.ops._mmcv_module import InMmcv

    found: list[Any] = [m for m in module.modules() if type(m) is theirs.MultiScaleDeformableAttention]
    for attention in found:
        attention.__class__ = InMmcv
        attention.backend = backend
    return len(found)
