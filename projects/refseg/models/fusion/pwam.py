"""LAVT's fusion (Yang et al. 2022, sections 3.2 and 3.3): pixel-word attention and the language gate.

Letters: E expressions, P pixels, L words, C channels of the stage, D channels of words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.fusion.base import Fused, Fusion, affinity, gate, init_linears, instance_norm, softmax_over
from refseg.registry import MODELS


@MODELS.register_module()
class PWAM(Fusion):
    """Every pixel gathers words; the product of both, and not a sum, is the fused feature F.

        G = norm(w(softmax(norm(q(V)) k(L)^T / sqrt(C)) v(L)))       eqs. 1-4
        F = project(GELU(vision(V)) * G)                             eqs. 5-6
        V' = V + gate(F) * F                                         eqs. 7-8

    The decoder gets F, the next stage V'. As in the published code, and unlike the paper's text: GELU instead of ReLU;
    one attention head; words have no norm, since padding would enter it; gates begin with small random weights, because
    with zeros in both of their layers they would never learn. Where that code has parameters without effect, there are
    none here: biases of `query` and `out`, which the norm after them takes away, and the gate of the last stage.

    Two exact savings: `out` is applied to the L words before pixels gather them, not to the P pixels after (rows of
    the softmax sum to 1), and nothing is transposed.

    `gate_std`: width of the gates' first weights. 0 is ReLA's published code, where V' thus stays V for ever.
    """

    def __init__(
        self, *, pixel_dim: int, word_dim: int, feeds_next: bool = True, dropout: float = 0.0, gate_std: float = 0.02
    ) -> None:
        super().__init__()
        self.vision = nn.Linear(pixel_dim, pixel_dim)
        self.query = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.key = nn.Linear(word_dim, pixel_dim)
        self.value = nn.Linear(word_dim, pixel_dim)
        self.out = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.project = nn.Linear(pixel_dim, pixel_dim)
        self.gate = gate(pixel_dim) if feeds_next else None
        self.dropout = nn.Dropout(dropout)
        if self.gate is not None:
            init_linears(self.gate, std=gate_std)

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        attention = softmax_over(affinity(instance_norm(self.query(pixels), pixel_mask), self.key(words)), word_mask)
        value = self.out(self.value(words))  # (E, L, C)
        gathered = instance_norm(torch.bmm(attention.to(value.dtype), value), pixel_mask)  # (E, P, C)
        fused = self.dropout(F.gelu(self.vision(pixels))) * gathered
        fused = self.dropout(F.gelu(self.project(fused)))
        return Fused(fused, pixels if self.gate is None else pixels + self.gate(fused) * fused, words)
