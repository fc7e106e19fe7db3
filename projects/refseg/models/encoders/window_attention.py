"""Swin's (shifted) window attention with mmdet's parameters and numbers, and fewer passes over memory.

- The projections see the tokens of the image only. A padded token is a zero vector before the qkv projection, so its
  query, key and value are that projection's bias.
- Padding, cyclic shift and the cut into windows are one gather of rows, their reverse another.
- Only windows at the lower and right edge mix regions that the shift brought together. Windows are therefore sorted
  into inner, right, lower and corner ones, each with one additive mask for all: position bias plus shift mask.

Letters: N images, P = h * w tokens, C channels, W windows (of all images), L = window * window places, H heads,
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

SHIFT_PENALTY = -100.0  # what mmdet and the official code add between places of different regions


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Where the rows of N * P tokens go when they are cut into windows, and where they come from.

    Windows are sorted by kind: inner, right edge, lower edge, corner; without a shift all are inner ones.
    """

    token_of: Tensor
    """(W * L,) the token at every place; 0 at padded ones."""
    place_of: Tensor
    """(N * P,) the place of every token."""
    padded: Tensor
    """The places without a token."""
    counts: tuple[int, ...]
    """Windows of each kind."""


def make_plan(images: int, size: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowPlan:
    """The official order: padded at the right and bottom to whole windows first, shifted up and left second."""
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
    image = torch.arange(images, device=device)[:, None] * tokens
    token_of = torch.where(windows[:, None] < 0, images * tokens, windows[:, None] + image).flatten()  # W / N, N, L
    order = token_of.argsort(stable=True)  # tokens first, in their order; then the padded places
    place_of, padded = order[: images * tokens], order[images * tokens :]
    counts = tuple(number * images for number in counts)
    return WindowPlan(token_of.masked_fill(token_of == images * tokens, 0), place_of, padded, counts)


@functools.lru_cache(maxsize=64)
def cached_plan(images: int, size: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowPlan:
    with torch.inference_mode(False):  # or a plan made for inference could not serve training
        return make_plan(images, size, window, shift, device)


def plan_for(tokens: Tensor, size: tuple[int, int], window: int, shift: int) -> WindowPlan:
    """The plan for tokens (N, P, C); a new one where tensors are only traced."""
    plain = type(tokens) is Tensor and not torch.compiler.is_compiling()
    return (cached_plan if plain else make_plan)(len(tokens), (*size,), window, shift, tokens.device)


class ToWindows(torch.autograd.Function):
    """Rows (N * P, C) -> (W * L, C), `fill` (C,) at padded places. The derivative is a gather too, not a scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, fill: Tensor, token_of: Tensor, place_of: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(place_of, padded)
        placed = rows.index_select(0, token_of)
        if len(padded):
            placed[padded] = fill
        return placed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place_of, padded = ctx.saved_tensors
        return grad.index_select(0, place_of), grad.index_select(0, padded).sum(0), None, None, None


class FromWindows(torch.autograd.Function):
    """Rows (W * L, C) -> (N * P, C); what padded places hold is left out."""

    @staticmethod
    def forward(ctx: Any, placed: Tensor, token_of: Tensor, place_of: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(token_of, padded)
        return placed.index_select(0, place_of)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        token_of, padded = ctx.saved_tensors
        placed = grad.index_select(0, token_of)
        if len(padded):
            placed[padded] = 0
        return placed, None, None, None


def position_bias(attention: WindowMSA) -> Tensor:
    """(H, L, L) from the table of relative positions."""
    index = attention.relative_position_index
    table = attention.relative_position_bias_table.t().contiguous()  # (H, (2 * window - 1)**2)
    return table.index_select(1, index.flatten()).unflatten(1, index.shape)


def shift_masks(window: int, shift: int, like: Tensor) -> Tensor:
    """(4, L, L): what is added in inner, right, lower and corner windows."""
    strange = torch.arange(window, device=like.device) >= window - shift  # rows or columns from the other side
    lower, right = strange.repeat_interleave(window), strange.repeat(window)  # (L,)
    at_right, at_bottom = right[:, None] != right, lower[:, None] != lower  # (L, L)
    kinds = torch.stack([torch.zeros_like(at_right), at_right, at_bottom, at_right | at_bottom])
    return torch.zeros(kinds.shape, dtype=like.dtype, device=like.device).masked_fill(kinds, SHIFT_PENALTY)


def attend(qkv: Tensor, bias: Tensor, *, scale: float, dropout: float) -> Tensor:
    """qkv (W, L, 3, H, D) and a bias (H, L, L) for all windows -> (W, L, C).

    The CPU's fused attention has no derivative for the bias: PyTorch would take a slower path than the one here.
    """
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (W, H, L, D) each
    if bias.requires_grad and torch.is_grad_enabled() and qkv.device.type == "cpu":
        weights = torch.matmul(query * scale, key.transpose(-2, -1)).add_(bias).softmax(-1)
        mixed = torch.matmul(F.dropout(weights, dropout), value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


class FastShiftWindowMSA(ShiftWindowMSA):
    """mmdet's `ShiftWindowMSA` with another forward."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        attention, channels = self.w_msa, query.shape[-1]
        plan = plan_for(query, hw_shape, self.window_size, self.shift_size)
        places = self.window_size**2
        if query.shape[1] != hw_shape[0] * hw_shape[1]:
            raise ValueError(f"{query.shape[1]} tokens are not a map of size {(*hw_shape,)}")
        rows = attention.qkv(query).flatten(0, 1)  # (N * P, 3 C)
        fill = rows.new_zeros(3 * channels) if attention.qkv.bias is None else attention.qkv.bias.to(rows.dtype)
        placed = ToWindows.apply(rows, fill, plan.token_of, plan.place_of, plan.padded)
        placed = placed.view(-1, places, 3, attention.num_heads, channels // attention.num_heads)  # (W, L, 3, H, D)
        bias = position_bias(attention).to(rows.dtype)
        biases = [bias]
        if self.shift_size:
            biases = list(bias + shift_masks(self.window_size, self.shift_size, bias)[:, None])
        dropout = attention.attn_drop.p if attention.attn_drop.training else 0.0
        mixed = [
            attend(part, bias, scale=attention.scale, dropout=dropout)
            for part, bias in zip(placed.split(plan.counts), biases, strict=True)
            if len(part)
        ]
        rows = (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(0, 1)  # (W * L, C)
        rows = FromWindows.apply(rows, plan.token_of, plan.place_of, plan.padded)
        tokens = attention.proj_drop(attention.proj(rows.view(query.shape)))
        return self.drop(tokens)


def use_fast_window_attention(module: nn.Module) -> int:
    """Makes every mmdet `ShiftWindowMSA` in `module` a fast one; returns how many there were.

    The modules change their class in place, so parameters, hooks and state dict stay. Only hooks of the inner
    `WindowMSA` are not called any more. Subclasses with a forward of their own are left alone.
    """
    found: list[Any] = [part for part in module.modules() if type(part) is ShiftWindowMSA]
    for attention in found:
        attention.__class__ = FastShiftWindowMSA
    return len(found)
