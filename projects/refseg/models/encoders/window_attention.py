"""Swin's (shifted) window attention with mmdet's parameters and results, but fewer passes over memory.

- Projections are applied to the tokens of the image only. A padded token is zero before the qkv projection, so its
  query, key and value are the projection's bias.
- Padding, cyclic shift and the split into windows are one gather of rows; their inverse is another.
- Only windows at the right and lower edges mix regions that the shift brought together. Windows are sorted into inner,
  right, lower and corner ones, and each kind has one additive mask: position bias plus shift mask.

Letters: N images, P = h * w tokens, C channels, W windows (of all images), L = window * window positions, H heads,
D = C / H.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.backbones.swin import ShiftWindowMSA, WindowMSA
from torch import Tensor, nn

SHIFT_PENALTY = -100.0  # added between positions of different regions by mmdet and the official code


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Map between the rows of N * P tokens and their windows.

    Windows are sorted by kind: inner, right edge, lower edge, corner. Without a shift all are inner.
    """

    token_of: Tensor
    """(W * L,) token at every position; 0 at padded ones."""
    place_of: Tensor
    """(N * P,) position of every token."""
    padded: Tensor
    """Positions without a token."""
    counts: tuple[int, ...]
    """Number of windows of each kind."""


def make_plan(images: int, size: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowPlan:
    """Make a plan in the official order: pad to whole windows at the right and bottom, then shift up and left."""
    height, width = size
    rows, columns = -(-height // window), -(-width // window)
    tokens, count = height * width, rows * columns
    grid = torch.arange(tokens, device=device).view(height, width)
    grid = F.pad(grid, (0, columns * window - width, 0, rows * window - height), value=-1)
    grid = grid.roll((-shift, -shift), (0, 1)) if shift else grid
    windows = grid.view(rows, window, columns, window).transpose(1, 2).reshape(count, -1)  # (W / N, L)
    counts: tuple[int, ...] = (count,)
    if shift:
        counts = ((rows - 1) * (columns - 1), rows - 1, columns - 1, 1)
        kinds = [2 * (row == rows - 1) + (column == columns - 1) for row in range(rows) for column in range(columns)]
        by_kind = sorted(range(count), key=kinds.__getitem__)
        windows = windows[torch.tensor(by_kind, device=device)]
    image = torch.arange(images, device=device)[:, None]
    token_of = torch.where(windows < 0, 0, windows)[:, None] + image * tokens * (windows >= 0)[:, None]  # W / N, N, L
    # Positions of one image: those of its tokens, in their order, then those of padding; then positions of all images
    order = torch.where(windows < 0, tokens, windows).flatten().argsort()
    length = window**2
    places = order // length * (images * length) + order % length + image * length  # (N, W / N * L)
    counts = tuple(number * images for number in counts)
    return WindowPlan(token_of.flatten(), places[:, :tokens].flatten(), places[:, tokens:].flatten(), counts)


@functools.lru_cache(maxsize=64)
def cached_plan(images: int, size: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowPlan:
    with torch.inference_mode(False):  # a plan made during inference must also work in training
        return make_plan(images, size, window, shift, device)


def plan_for(tokens: Tensor, size: tuple[int, int], window: int, shift: int) -> WindowPlan:
    """Return the plan for tokens (N, P, C): cached, or a new one during tracing."""
    plain = type(tokens) is Tensor and not torch.compiler.is_compiling()
    return (cached_plan if plain else make_plan)(tokens.shape[0], (*size,), window, shift, tokens.device)


class ToWindows(torch.autograd.Function):
    """Rows (N * P, C) -> (W * L, C), with `fill` (C,) at padded positions. The backward pass is a gather, too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, fill: Tensor, token_of: Tensor, place_of: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(place_of, padded)
        placed = rows.index_select(0, token_of)
        if padded.shape[0]:
            placed[padded] = fill
        return placed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place_of, padded = ctx.saved_tensors
        return grad.index_select(0, place_of), grad.index_select(0, padded).sum(0), None, None, None


class FromWindows(torch.autograd.Function):
    """Rows (W * L, C) -> (N * P, C), without padded positions."""

    @staticmethod
    def forward(ctx: Any, placed: Tensor, token_of: Tensor, place_of: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(token_of, padded)
        return placed.index_select(0, place_of)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        token_of, padded = ctx.saved_tensors
        placed = grad.index_select(0, token_of)
        if padded.shape[0]:
            placed[padded] = 0
        return placed, None, None, None


def position_bias(attention: WindowMSA) -> Tensor:
    """Return the bias (H, L, L) from the table of relative positions."""
    index = attention.relative_position_index
    table = attention.relative_position_bias_table.t().contiguous()  # (H, (2 * window - 1)**2)
    return table.index_select(1, index.flatten()).unflatten(1, index.shape)


def shift_masks(window: int, shift: int, like: Tensor) -> Tensor:
    """Return the additive masks (4, L, L) of inner, right, lower and corner windows."""
    wrapped = torch.arange(window, device=like.device) >= window - shift  # rows or columns from the opposite edge
    lower, right = wrapped.repeat_interleave(window), wrapped.repeat(window)  # (L,)
    at_right, at_bottom = right[:, None] != right, lower[:, None] != lower  # (L, L)
    kinds = torch.stack([torch.zeros_like(at_right), at_right, at_bottom, at_right | at_bottom])
    return torch.zeros(kinds.shape, dtype=like.dtype, device=like.device).masked_fill(kinds, SHIFT_PENALTY)


def attend(qkv: Tensor, bias: Tensor, *, scale: float, dropout: float) -> Tensor:
    """Attention of windows: qkv (W, L, 3, H, D), with one bias (H, L, L) for all of them -> (W, L, C).

    The CPU's fused attention has no gradient for the bias, and PyTorch's fallback is slower than the one here.
    """
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (W, H, L, D) each
    if bias.requires_grad and torch.is_grad_enabled() and qkv.device.type == "cpu":
        weights = torch.matmul(query * scale, key.transpose(-2, -1)).add_(bias).softmax(-1)
        mixed = torch.matmul(F.dropout(weights, dropout), value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


class FastShiftWindowMSA(ShiftWindowMSA):
    """mmdet's `ShiftWindowMSA` with a faster forward."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        attention, channels = self.w_msa, query.shape[-1]
        plan = plan_for(query, hw_shape, self.window_size, self.shift_size)
        if query.shape[1] != hw_shape[0] * hw_shape[1]:
            raise ValueError(f"{query.shape[1]} tokens do not form a map of size {(*hw_shape,)}.")
        # Project tokens, then gather them into windows
        rows = attention.qkv(query).flatten(0, 1)  # (N * P, 3 C)
        fill = rows.new_zeros(3 * channels) if attention.qkv.bias is None else attention.qkv.bias.to(rows.dtype)
        placed = ToWindows.apply(rows, fill, plan.token_of, plan.place_of, plan.padded)
        placed = placed.view(
            -1, self.window_size**2, 3, attention.num_heads, channels // attention.num_heads
        )  # (W, L, 3, H, D)
        # Attend within windows, one bias per kind of window
        bias = position_bias(attention).to(rows.dtype)
        biases = [bias]
        if self.shift_size:
            biases = list(bias + shift_masks(self.window_size, self.shift_size, bias)[:, None])
        dropout = attention.attn_drop.p if attention.attn_drop.training else 0.0
        mixed = [
            attend(part, bias, scale=attention.scale, dropout=dropout)
            for part, bias in zip(placed.split(plan.counts), biases, strict=True)
            if part.shape[0]
        ]
        # Gather tokens back and project
        rows = (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(0, 1)  # (W * L, C)
        rows = FromWindows.apply(rows, plan.token_of, plan.place_of, plan.padded)
        tokens = attention.proj_drop(attention.proj(rows.view(query.shape)))
        return self.drop(tokens)


def use_fast_window_attention(module: nn.Module) -> int:
    """Turn every mmdet `ShiftWindowMSA` in `module` into a `FastShiftWindowMSA`; return their number.

    The modules change their class in place and keep parameters, hooks and state dict. Only hooks of the inner
    `WindowMSA` are not called anymore. Subclasses with their own forward are skipped.
    """
    modules: list[Any] = [part for part in module.modules() if type(part) is ShiftWindowMSA]
    for attention in modules:
        attention.__class__ = FastShiftWindowMSA
    return len(modules)
