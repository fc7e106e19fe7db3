"""Multi-scale deformable attention in Triton: equation 3 of Deformable DETR, forward and backward, one kernel each.

Import this module only if `triton` can be imported. A program computes BLOCK bags, each one (image, query, head), over
all D channels. It loops over levels and points, reads the four corners of each, and keeps its sums in fp32 (fp64 for
fp64 input). Pixels outside a level are masked. In backward every tap belongs to one bag, so the gradients of locations
and weights are plain stores. The gradients of the value are added atomically in fp32.

Level sizes are read on the device, so the host never waits for them.

Letters: B images, Q queries, H heads, D channels per head, L levels, P points, S pixels of all levels.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 512  # elements of one program's (BLOCK, BLOCK_D) tile


@triton.jit
def _load_tap(locations, weights, tap, live, h, w, DTYPE: tl.constexpr):
    """Return weight, x, and y in pixels of one tap per bag, and whether it touches the level; (0, 0) if it does not."""
    x = tl.load(locations + tap * 2, mask=live, other=-2.0).to(DTYPE) * w - 0.5
    y = tl.load(locations + tap * 2 + 1, mask=live, other=-2.0).to(DTYPE) * h - 0.5
    inside = live & (x > -1) & (x < w) & (y > -1) & (y < h)
    weight = tl.load(weights + tap, mask=live, other=0.0).to(DTYPE)
    return weight, tl.where(inside, x, 0.0), tl.where(inside, y, 0.0), inside


@triton.jit
def _corner(
    x, y, h, w, start, S, inside, first, channel, H: tl.constexpr, D: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr
):
    """Return the weights of one corner in x and y, and the pointer and mask of its pixel (BLOCK, BLOCK_D).

    `first` is the offset of the image's first pixel in the bag's head. S guards against wrong level sizes.
    """
    x0 = tl.floor(x)
    y0 = tl.floor(y)
    by_x = x - x0 if DX == 1 else 1 - (x - x0)
    by_y = y - y0 if DY == 1 else 1 - (y - y0)
    column = x0.to(tl.int32) + DX
    line = y0.to(tl.int32) + DY
    row = start + line * w + column
    ok = inside & (column >= 0) & (column < w) & (line >= 0) & (line < h) & (row < S)
    return by_x, by_y, (first + row * (H * D))[:, None] + channel[None, :], ok[:, None] & (channel < D)[None, :]


@triton.jit
def _forward(
    value, shapes, starts, locations, weights, out, bags, Q, S,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_D)
    live = bag < bags
    first = (bag // (Q * H)) * S * H * D + (bag % H) * D
    total = tl.zeros((BLOCK, BLOCK_D), dtype=DTYPE)
    for level in range(L):
        h = tl.load(shapes + level * 2).to(tl.int32)
        w = tl.load(shapes + level * 2 + 1).to(tl.int32)
        start = tl.load(starts + level).to(tl.int32)
        for point in range(P):
            weight, x, y, inside = _load_tap(locations, weights, (bag * L + level) * P + point, live, h, w, DTYPE)
            for corner in tl.static_range(4):
                by_x, by_y, pointer, mask = _corner(
                    x, y, h, w, start, S, inside, first, channel, H, D, corner % 2, corner // 2
                )
                pixels = tl.load(value + pointer, mask=mask, other=0.0).to(DTYPE)
                total += (weight * by_x * by_y)[:, None] * pixels
    tl.store(out + bag[:, None] * D + channel[None, :], total, mask=live[:, None] & (channel < D)[None, :])


@triton.jit
def _backward(
    value, shapes, starts, locations, weights, grad, grad_value, grad_locations, grad_weights, bags, Q, S,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_D)
    live = bag < bags
    first = (bag // (Q * H)) * S * H * D + (bag % H) * D
    whole = live[:, None] & (channel < D)[None, :]
    grads = tl.load(grad + bag[:, None] * D + channel[None, :], mask=whole, other=0.0).to(DTYPE)
    for level in range(L):
        h = tl.load(shapes + level * 2).to(tl.int32)
        w = tl.load(shapes + level * 2 + 1).to(tl.int32)
        start = tl.load(starts + level).to(tl.int32)
        for point in range(P):
            tap = (bag * L + level) * P + point
            weight, x, y, inside = _load_tap(locations, weights, tap, live, h, w, DTYPE)
            grad_weight = tl.zeros((BLOCK,), dtype=DTYPE)
            grad_x = tl.zeros((BLOCK,), dtype=DTYPE)
            grad_y = tl.zeros((BLOCK,), dtype=DTYPE)
            for corner in tl.static_range(4):
                by_x, by_y, pointer, mask = _corner(
                    x, y, h, w, start, S, inside, first, channel, H, D, corner % 2, corner // 2
                )
                pixels = tl.load(value + pointer, mask=mask, other=0.0).to(DTYPE)
                dot = tl.sum(pixels * grads, axis=1)
                grad_weight += by_x * by_y * dot
                grad_x += (by_y if corner % 2 == 1 else -by_y) * dot
                grad_y += (by_x if corner // 2 == 1 else -by_x) * dot
                tl.atomic_add(grad_value + pointer, (weight * by_x * by_y)[:, None] * grads, mask=mask, sem="relaxed")
            tl.store(grad_weights + tap, grad_weight, mask=live)
            tl.store(grad_locations + tap * 2, grad_x * weight * w, mask=live)
            tl.store(grad_locations + tap * 2 + 1, grad_y * weight * h, mask=live)


def deformable_attention(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Compute the attention for tensors on a GPU (all of them), or anywhere with TRITON_INTERPRET=1."""
    return _Triton.apply(value, spatial_shapes, sampling_locations, attention_weights)


def _launch(kernel: Any, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, *others: Tensor) -> None:
    """Run a kernel on all bags, on the device of the tensors, unless there is nothing to compute."""
    (B, S, H, D), (Q, _, L, P, _) = value.shape, locations.shape[1:]
    block_d = triton.next_power_of_2(D)
    block, bags = max(1, _TILE // block_d), B * Q * H
    if value.numel() == 0 or locations.numel() == 0:
        return
    with torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext():
        kernel[(triton.cdiv(bags, block),)](
            value, shapes, starts, locations, *others, bags, Q, S, H=H, D=D, L=L, P=P, BLOCK=block, BLOCK_D=block_d,
            DTYPE=tl.float64 if value.dtype == torch.float64 else tl.float32,
        )  # fmt: skip


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        value, shapes, locations, weights = (x.contiguous() for x in (value, shapes, locations, weights))
        areas = shapes.prod(1)
        tensors = (value, shapes, areas.cumsum(0) - areas, locations, weights)
        ctx.save_for_backward(*tensors)
        (B, _, H, D), Q = value.shape, locations.shape[1]
        out = value.new_zeros(B, Q, H * D)
        _launch(_forward, *tensors, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = value, _, _, locations, weights = (
            ctx.saved_tensors
        )  # read once: checkpointing recomputes them when read
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        grad_value = torch.zeros_like(value, dtype=wide)
        grad_locations, grad_weights = torch.zeros_like(locations), torch.zeros_like(weights)
        _launch(_backward, *saved, grad.contiguous(), grad_value, grad_locations, grad_weights)
        return grad_value.to(value.dtype), None, grad_locations, grad_weights
