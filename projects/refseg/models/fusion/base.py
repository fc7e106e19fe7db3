"""What a fusion is to the encoder loop: pixels and words of a stage go in; three things come out.

Letters: E expressions, P = h * w pixels of a stage, L words, C channels of the stage, D channels of words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn


class Fused(NamedTuple):
    """`level` (E, P, C): for the decoder. `pixels` (E, P, C): into the next vision stage; not read after the last.
    `words` (E, L, D): into the next text stage and the next fusion."""

    level: Tensor
    pixels: Tensor
    words: Tensor


class Fusion(BaseModule):
    """A plugin of `FusedEncoder`, built once per stage with that stage's `pixel_dim`, with `word_dim`, and with
    `feeds_next`: whether another vision stage follows, so that no parameter is made that nothing reads."""

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        """pixels (E, P, C); words (E, L, D); word_mask (E, L); pixel_mask (E, P), or None where no image is padded."""
        raise TypeError(f"{type(self).__name__} must define forward")


def instance_norm(pixels: Tensor, pixel_mask: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """(E, P, C) with mean 0 and variance 1 over the pixels of the image, per row and channel; in fp32 at least."""
    x = pixels if pixels.dtype == torch.float64 else pixels.float()
    if pixel_mask is None:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)  # (E, 1, C)
    else:
        weight = pixel_mask[..., None].to(x.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        mean = (x * weight).sum(1, keepdim=True)
        variance = ((x - mean).square() * weight).sum(1, keepdim=True)
    return ((x - mean) * torch.rsqrt(variance + eps)).to(pixels.dtype)


def softmax_over(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the last dimension of scores (E, T, S) where valid (E, S) is True; zero in rows without any. In
    fp32 at least."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if valid is None:
        return scores.softmax(-1)
    mask = valid[:, None]
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def gate(dim: int, *, hidden_dim: int | None = None, bias: bool = False, tanh: bool = True) -> nn.Sequential:
    """Linear, ReLU, linear, tanh."""
    hidden = hidden_dim or dim
    layers: list[nn.Module] = [
        nn.Linear(dim, hidden, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim, bias=bias),
    ]
    return nn.Sequential(*layers, *[nn.Tanh()] * tanh)


def init_linears(module: nn.Module, *, std: float = 0.02) -> None:
    """Weights from a normal distribution of this width, cut at +-2; biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std) if std else nn.init.zeros_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def affinity(query: Tensor, key: Tensor) -> Tensor:
    """(E, P, C) and (E, L, C) -> scaled products (E, P, L)."""
    return torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
