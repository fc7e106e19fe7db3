"""mmcv's attention module of Deformable DETR (section 4.1) with the backends of `deformable_attention`.

Importing this module imports `mmcv.ops`.

Letters: B images, Q queries, C channels, H heads, L levels, P points, S pixels of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmcv.ops
from torch import Tensor, nn

from refseg.ops.deformable_attention import deformable_attention, sizes_on


class MultiScaleDeformableAttention(mmcv.ops.MultiScaleDeformableAttention):
    """Multi-scale deformable attention with mmcv's arguments, parameters, and initialization.

    It needs no compiled mmcv. `backend` is that of `deformable_attention`.
    """

    backend: str | None = None

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
        size = sizes_on(spatial_shapes, offsets.device).flip(-1)  # (L, 2): w, h
        return center + offsets / size[:, None]
    if reference_points.shape[-1] == 4:
        return center + offsets / offsets.shape[4] * reference_points[:, :, None, :, None, 2:] * 0.5
    raise ValueError(f"reference_points must have 2 or 4 coordinates, got {reference_points.shape[-1]}")


def use_refseg_deformable_attention(module: nn.Module, backend: str | None = None) -> int:
    """Turn every mmcv `MultiScaleDeformableAttention` in `module` into ours, in place; return their number.

    Parameters, hooks, training state, and state-dict keys stay. Other subclasses of mmcv's class do not change.
    """
    attentions: list[Any] = [m for m in module.modules() if type(m) is mmcv.ops.MultiScaleDeformableAttention]
    for attention in attentions:
        attention.__class__ = MultiScaleDeformableAttention
        attention.backend = backend
    return len(attentions)
