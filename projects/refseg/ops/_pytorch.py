"""Multi-scale deformable attention in PyTorch alone: a plain form, and a fast form for CPU.

Both compute equation 3 of Deformable DETR (Zhu et al., 2020) without its projections: head h of query q gets the sum,
over levels l and points p, of attention_weights[q, h, l, p] times the value map of level l, interpolated bilinearly at
sampling_locations[q, h, l, p]. Outside the map the value is zero.

The fast form computes that sum as an embedding bag. Bilinear interpolation is a weighted sum of four pixels, so each
(query, head) sums 4 * L * P weighted rows of a table of pixels. The table has a border of zeros, one pixel wide, around
each level, so every corner is a row of the table, also at the edges of the image. The gradient of the value is the
transposed sparse product, again an embedding bag, over the taps sorted by row. The gradients of weights and locations
need the dot products of one output gradient with the four rows, a sampled dense-dense product.

Letters: B images, Q queries, H heads, D channels per head, L levels, P points, S pixels of all levels, R rows of the
bordered table of one image (pixels and heads), C the H * L * P taps of one query.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = Sequence[tuple[int, int]]
_BLOCK_TAPS = 2**17


def compute_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype of sums: at least fp32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def plain(value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Compute the attention by `grid_sample`, level by level, for exporters, compilers, and double backward."""
    B, _, H, D = value.shape
    Q, P = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = compute_dtype(value)
    total = value.new_zeros(B * H, D, Q, dtype=dtype)
    levels = value.to(dtype).split([h * w for h, w in shapes], dim=1)
    if B * H * Q * P == 0:  # grid_sample refuses empty input
        nothing = 0 * (value.sum() + sampling_locations.sum() + attention_weights.sum())  # keeps the graph connected
        return total.reshape(B, Q, H * D).to(value.dtype) + nothing.to(value.dtype)
    for level, (h, w) in enumerate(shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(B * H, D, h, w)
        grid = sampling_locations[:, :, :, level].to(dtype).transpose(1, 2).reshape(B * H, Q, P, 2)
        weight = attention_weights[:, :, :, level].to(dtype).transpose(1, 2).reshape(B * H, 1, Q, P)
        samples = F.grid_sample(image, 2 * grid - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (samples * weight).sum(-1)  # (B * H, D, Q)
    return total.reshape(B, H * D, Q).transpose(1, 2).to(value.dtype)


def embedding_bag(value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Compute the attention by embedding bags, for CPU tensors. It saves only its inputs for backward."""
    return _EmbeddingBag.apply(value, sampling_locations, attention_weights, tuple(shapes))


class _Bordered:
    """The table of one image's pixels and heads, and the rows of it that the C taps of a query read.

    Attributes:
        starts: First pixel of each level, and the number of all pixels, with the borders.
        size: (2, 1, C) width and height of each tap's level.
        pitch: (C,) rows from one line of the level to the next.
        origin: (C,) row of the level's pixel (0, 0) in the tap's head.
    """

    def __init__(self, shapes: Shapes, heads: int, points: int, dtype: torch.dtype) -> None:
        self.shapes, self.heads, self.dtype = shapes, heads, dtype
        self.starts = [0, *itertools.accumulate((h + 2) * (w + 2) for h, w in shapes)]
        index_dtype = torch.int32 if self.starts[-1] * heads < 2**31 else torch.int64
        size = torch.tensor([[w for _, w in shapes], [h for h, _ in shapes]], dtype=dtype)  # (2, L)
        pitch = torch.tensor([(w + 2) * heads for _, w in shapes], dtype=index_dtype)  # (L,)
        first = torch.tensor(self.starts[:-1], dtype=index_dtype) * heads + pitch + heads  # (L,)
        origin = first.repeat_interleave(points) + torch.arange(heads, dtype=index_dtype)[:, None]  # (H, L * P)
        self.size = size.repeat_interleave(points, dim=1).repeat(1, heads)[:, None]
        self.pitch = pitch.repeat_interleave(points).repeat(heads)
        self.origin = origin.flatten()

    def table(self, value: Tensor) -> Tensor:
        """Copy (B, S, H, D) into a table (B, R, D) with a border of zeros around each level."""
        bordered = value.new_zeros(len(value), self.starts[-1], value[0, 0].numel(), dtype=self.dtype)
        for pixels, interior in self.interiors(value.flatten(2), bordered):
            interior.copy_(pixels)
        return bordered.view(len(value), -1, value.shape[3])

    def interiors(self, pixels: Tensor, bordered: Tensor, dy: int = 0, dx: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each level a view of (B, S, K), and of the same pixels, shifted by (-dy, -dx), in (B, S', K)."""
        first = 0
        for (h, w), (start, end) in zip(self.shapes, itertools.pairwise(self.starts), strict=True):
            level = bordered[:, start:end].unflatten(1, (h + 2, w + 2))
            yield (
                pixels[:, first : first + h * w].unflatten(1, (h, w)),
                level[:, 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w],
            )
            first += h * w

    def blocks(self, queries: int) -> list[slice]:
        """Split the queries into equal parts whose intermediate results fit into the processor's cache."""
        count = -(-queries * len(self.pitch) // _BLOCK_TAPS)
        step = -(-queries // count)
        return [slice(first, min(first + step, queries)) for first in range(0, queries, step)]

    def taps(self, locations: Tensor) -> _Taps:
        """Return the taps of one image for locations (Q, H, L, P, 2). NaN also gets a row of the table."""
        queries, size = len(locations), self.size
        xy = locations.reshape(queries, -1, 2).permute(2, 0, 1).to(size.dtype)
        pixel = torch.empty(xy.shape, dtype=size.dtype)
        torch.addcmul(torch.tensor(-0.5, dtype=size.dtype), xy, size, out=pixel)
        torch.minimum(pixel.clamp_(min=-1), size, out=pixel)
        corner = pixel.floor()
        torch.minimum(corner, size - 1, out=corner)
        cell = corner.to(self.pitch.dtype).clamp_(min=-1)
        upper = torch.addcmul(self.origin, cell[1], self.pitch).add_(cell[0], alpha=self.heads)
        per_bag = len(self.pitch) // self.heads
        return _Taps(
            pixel=pixel,
            frac=torch.sub(pixel, corner, out=corner),
            upper=upper.view(-1),
            lower=(upper + self.pitch).view(-1),
            bags=torch.arange(0, upper.numel() + 1, per_bag, dtype=upper.dtype),
        )


class _Taps(NamedTuple):
    """Positions of the taps of one image. A bag is one (query, head)."""

    pixel: Tensor  # (2, Q, C) x and y in pixels, clamped to [-1, size]
    frac: Tensor  # (2, Q, C) position between the corners, 0 to 1
    upper: Tensor  # (Q * C,) row of the upper left corner
    lower: Tensor  # (Q * C,) row of the lower left corner
    bags: Tensor  # (Q * H + 1,) first tap of each bag, and the number of taps

    def corner_weights(self, weights: Tensor) -> list[Tensor]:
        """Split attention weights (Q, C) over the upper left, upper right, lower left, and lower right corners."""
        right = weights * self.frac[0]
        left = weights - right
        lower_right = right * self.frac[1]
        lower_left = left * self.frac[1]
        return [left.sub_(lower_left), right.sub_(lower_right), lower_left, lower_right]


def _bag(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights.view(-1), include_last_offset=True
    )


def _dots(table: Tensor, rows: Tensor, offsets: Tensor, grads: Tensor) -> Tensor:
    """Return for each tap the dot product of its row of the table (R, D) and its bag's gradient (N, D)."""
    pattern = torch.sparse_csr_tensor(
        offsets, rows, grads.new_zeros(len(rows)), (len(grads), len(table)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, grads, table.t(), beta=0.0).values()


@functools.cache
def _silence_sparse_notice() -> None:
    """Suppress PyTorch's notice, once per process, that compressed sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.zeros(0), (1, 1))


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: tuple) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        (B, _, H, D), Q, P = value.shape, locations.shape[1], locations.shape[4]
        out = value.new_zeros(B, Q, H * D)
        if locations.numel() == 0 or value.numel() == 0:
            return out
        bordered = _Bordered(shapes, H, P, compute_dtype(value))
        tables = bordered.table(value)
        for b, block in itertools.product(range(B), bordered.blocks(Q)):
            table, taps = tables[b], bordered.taps(locations[b, block])
            parts = taps.corner_weights(weights[b, block].flatten(1).to(table.dtype))
            total = _bag(table, taps.upper, taps.bags, parts[0])  # (queries of the block * H, D)
            total += _bag(table[H:], taps.upper, taps.bags, parts[1])
            total += _bag(table, taps.lower, taps.bags, parts[2])
            total += _bag(table[H:], taps.lower, taps.bags, parts[3])
            out[b, block] = total.view(-1, H * D)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = value, locations, weights = ctx.saved_tensors  # read once: checkpointing recomputes them when read
        by_value, by_location, by_weight = (
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if needed else None
            for tensor, needed in zip(saved, ctx.needs_input_grad[:3], strict=True)
        )
        if locations.numel() == 0 or value.numel() == 0:
            return by_value, by_location, by_weight, None
        dtype = compute_dtype(value)
        (B, _, H, D), Q, P = value.shape, locations.shape[1], locations.shape[4]
        bordered = _Bordered(ctx.shapes, H, P, dtype)
        tables = bordered.table(value) if any(ctx.needs_input_grad[1:]) else None
        C = len(bordered.pitch)
        rows = torch.empty(Q, C, dtype=bordered.pitch.dtype)
        parts = torch.empty(4, Q, C, dtype=dtype)
        for b in range(B):
            grads = grad[b].to(dtype).reshape(-1, D).contiguous()  # (Q * H, D)
            for block in bordered.blocks(Q):
                taps = bordered.taps(locations[b, block])
                weight = weights[b, block].flatten(1).to(dtype)  # (queries of the block, C)
                if by_value is not None:
                    rows[block] = taps.upper.view(-1, C)
                    for corner, part in enumerate(taps.corner_weights(weight)):
                        parts[corner, block] = part
                if tables is not None:
                    of_bags = grads[block.start * H : block.stop * H]
                    to_location, to_weight = _tap_grads(tables[b], bordered, taps, weight, of_bags)
                    if by_location is not None:
                        by_location[b, block].view(-1, C, 2).copy_(to_location.permute(1, 2, 0))
                    if by_weight is not None:
                        by_weight[b, block].view(-1, C).copy_(to_weight)
            if by_value is not None:
                _add_value_grad(by_value[b], bordered, rows.view(-1), parts.view(4, -1), grads)
        return by_value, by_location, by_weight, None


def _tap_grads(table: Tensor, bordered: _Bordered, taps: _Taps, weight: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of one image's locations, (2, Q, C), and weights, (Q, C).

    For a location outside the map in x (or y), the gradient in that direction is zero, as in mmcv's kernels.
    """
    _silence_sparse_notice()
    upper_left, upper_right, lower_left, lower_right = (
        _dots(part, rows, taps.bags, grads).view(weight.shape)
        for rows in (taps.upper, taps.lower)
        for part in (table, table[bordered.heads :])
    )
    x, y = taps.frac
    upper = torch.lerp(upper_left, upper_right, x)
    lower = torch.lerp(lower_left, lower_right, x)
    by_location = torch.empty_like(taps.pixel)
    torch.lerp(upper_right.sub_(upper_left), lower_right.sub_(lower_left), y, out=by_location[0])
    torch.sub(lower, upper, out=by_location[1])
    inside = (taps.pixel > -1) & (taps.pixel < bordered.size)
    by_location.mul_(weight).mul_(bordered.size).mul_(inside)
    return by_location, torch.lerp(upper, lower, y)


def _add_value_grad(out: Tensor, bordered: _Bordered, taps: Tensor, parts: Tensor, grads: Tensor) -> None:
    """Add the gradient of one image's value to `out` (S, H, D).

    `taps` are the rows of all upper left corners, and `parts` (4, taps) the weights of the four corners. The taps are
    sorted once. The other three corners have the same order and a constant offset, so their sums are shifted by one
    pixel.
    """
    order = torch.sort(taps).indices
    counts = torch.bincount(taps, minlength=bordered.starts[-1] * bordered.heads)
    offsets = F.pad(counts.cumsum(0, dtype=taps.dtype), (1, 0))
    bags = order.to(taps.dtype).div_(len(taps) // len(grads), rounding_mode="floor")
    pixels = out.flatten(1)[None]  # (1, S, H * D)
    for corner, part in enumerate(parts):
        total = _bag(grads, bags, offsets, part.index_select(0, order))  # (R, D)
        dy, dx = divmod(corner, 2)
        for target, source in bordered.interiors(pixels, total.view(1, -1, pixels.shape[2]), dy, dx):
            target += source
