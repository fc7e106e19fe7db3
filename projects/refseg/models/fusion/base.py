"""Interface of fusions, plugins of the encoder loop, and the parts they share.

Letters: E expressions, P = h * w pixels of a stage, L words, C channels of the stage, D channels of words.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn


class Fused(NamedTuple):
    """Output of a fusion.

    `level` (E, P, C) goes to the decoder, `pixels` (E, P, C) to the next vision stage (ignored after the last one),
    `words` (E, L, D) to the next text stage and the next fusion.
    """

    level: Tensor
    pixels: Tensor
    words: Tensor


class Fusion(BaseModule):
    """Base class of the plugins of `FusedEncoder`, which builds one per stage.

    The encoder passes `pixel_dim`, `word_dim`, and `feeds_next`: whether another vision stage follows. If not, a fusion
    must not create parameters for it, because nothing would train them.

    `needs_size` is True where `forward` also takes `size`, the (h, w) of the pixels.
    """

    needs_size: ClassVar[bool] = False

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        """Fuse pixels (E, P, C) and words (E, L, D).

        Args:
            pixels: (E, P, C).
            words: (E, L, D).
            word_mask: (E, L), True on real tokens.
            pixel_mask: (E, P), True on the image; None without padding.
        """
        raise TypeError(f"{type(self).__name__} must define forward")


def instance_norm(pixels: Tensor, pixel_mask: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """Normalize pixels (E, P, C) to mean 0 and variance 1 over the image, per row and channel, in fp32 at least."""
    x = pixels if pixels.dtype == torch.float64 else pixels.float()
    if pixel_mask is None:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)  # (E, 1, C)
    else:
        weight = pixel_mask[..., None].to(x.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        mean = (x * weight).sum(1, keepdim=True)
        variance = ((x - mean).square() * weight).sum(1, keepdim=True)
    return ((x - mean) * torch.rsqrt(variance + eps)).to(pixels.dtype)


def gate(dim: int, *, bias: bool = False, tanh: bool = True) -> nn.Sequential:
    """Linear, ReLU, linear, and tanh unless `tanh` is False."""
    layers = [nn.Linear(dim, dim, bias=bias), nn.ReLU(inplace=True), nn.Linear(dim, dim, bias=bias)]
    return nn.Sequential(*layers, *[nn.Tanh()] * tanh)


def init_linears(module: nn.Module, *, std: float = 0.02) -> None:
    """Initialize linear layers: truncated normal weights of width `std` (zeros for 0), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std) if std else nn.init.zeros_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def affinity(query: Tensor, key: Tensor) -> Tensor:
    """Return the scaled dot products (E, P, L) of queries (E, P, C) and keys (E, L, C)."""
    return torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
