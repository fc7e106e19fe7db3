"""LAVT's fusion (Yang et al. 2022, sections 3.2 and 3.3): pixel-word attention and the language gate.

Letters: E expressions, P pixels, L words, C channels of the stage, D channels of words, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError, check_at_least, check_choice
from refseg.models.fusion.base import Fused, Fusion, gate, init_linears, instance_norm
from refseg.models.layers import masked_softmax
from refseg.registry import MODELS

GateInit = Literal["random", "zeros"]
GATE_STD: dict[GateInit, float] = {"random": 0.02, "zeros": 0.0}


@MODELS.register_module()
class PWAM(Fusion):
    """Cross-attention from pixels to words, multiplied with the pixels, and a gate for the next stage.

        G = norm(w(softmax(norm(q(V)) k(L)^T / sqrt(C)) v(L)))       eqs. 1-4
        F = project(GELU(vision(V)) * G)                             eqs. 5-6
        V' = V + gate(F) * F                                         eqs. 7-8

    The decoder gets F, the next stage V'. We follow the published code where it differs from the paper: GELU instead of
    ReLU, and no norm of words (padding would enter it). Parameters without effect are left out: the biases of `query`
    and `out`, which the following norm cancels, and the gate of the last stage.

    `out` is applied to the L words of each head instead of the P gathered pixels. This is exact, since both are linear.

    Args:
        dropout: Dropout of the fused features.
        gate_init: Initial weights of the gates. "random": small random numbers, as in LAVT's published code. "zeros":
            zeros in both layers, as in ReLA's. Then neither layer gets a gradient, so the gates never open and V' = V.
        num_heads: Attention heads; 1 in LAVT's published code, 8 in CGFormer's. Scores are divided by sqrt(C), not by
            sqrt(C / num_heads), as in both.
    """

    def __init__(
        self,
        *,
        pixel_dim: int,
        word_dim: int,
        feeds_next: bool = True,
        dropout: float = 0.0,
        gate_init: GateInit = "random",
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        check_at_least("fusion.num_heads", num_heads, 1)
        if pixel_dim % num_heads:
            raise ConfigError(f"fusion.num_heads {num_heads} must divide the {pixel_dim} channels of pixels.")
        check_choice("fusion.gate_init", gate_init, GATE_STD)
        if not 0 <= dropout <= 1:
            raise ConfigError(f"fusion.dropout {dropout} is no probability. Set it to a number from 0 to 1.")
        self.num_heads = num_heads
        self.vision = nn.Linear(pixel_dim, pixel_dim)
        self.query = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.key = nn.Linear(word_dim, pixel_dim)
        self.value = nn.Linear(word_dim, pixel_dim)
        self.out = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.project = nn.Linear(pixel_dim, pixel_dim)
        self.gate = gate(pixel_dim) if feeds_next else None
        self.dropout = nn.Dropout(dropout)
        if self.gate is not None:
            init_linears(self.gate, std=GATE_STD[gate_init])

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        # Cross-attention: pixels to words
        query = self._heads(instance_norm(self.query(pixels), pixel_mask) * pixels.shape[-1] ** -0.5)  # (E, H, P, d)
        key, value = self._heads(self.key(words)), self._heads(self.value(words))  # (E, H, L, d) each
        attention = masked_softmax(query @ key.transpose(-1, -2), word_mask[:, None, None])  # (E, H, P, L)
        value = value @ self.out.weight.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # (E, H, L, C)
        attention = attention.to(value.dtype).transpose(1, 2).flatten(2)  # (E, P, H L)
        gathered = instance_norm(torch.bmm(attention, value.flatten(1, 2)), pixel_mask)  # (E, P, C)
        # Multiply with the pixels
        fused = self.dropout(F.gelu(self.vision(pixels))) * gathered
        fused = self.dropout(F.gelu(self.project(fused)))
        # Language gate
        return Fused(fused, pixels if self.gate is None else pixels + self.gate(fused) * fused, words)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
