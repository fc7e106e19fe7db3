"""LGFormer's vision-language bidirectional attention (Wei et al., section 3.2.1, eqs. 5-11).

Letters: E expressions, P pixels, L words, C channels of the stage (the paper's C_v), D channels of words (C_l).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refseg.models.fusion.base import Fused, Fusion, affinity, gate
from refseg.models.layers import masked_softmax, mlp
from refseg.registry import MODELS


class Update(nn.Module):
    """M = fuse([X, R]); X' = X + M * gate(M). Eqs. 8 and 10 for pixels, 9 and 11 for words."""

    def __init__(self, dim: int, *, bounded_gate: bool) -> None:
        super().__init__()
        self.fuse = mlp((2 * dim, dim, dim))
        self.gate = gate(dim, bias=True, tanh=bounded_gate)

    def forward(self, x: Tensor, response: Tensor) -> Tensor:
        fused = self.fuse(torch.cat([x, response], -1))
        return x + fused * self.gate(fused)


@MODELS.register_module()
class VLBA(Fusion):
    """Cross-attention in both directions with one affinity matrix, and a gated update of both sides.

        A = V_q L_k^T / sqrt(C)                                      eq. 5
        V_r = w1(softmax over words(A) L_v)                          eq. 6
        L_r = w2(softmax over pixels(A^T) V_v)                       eq. 7

    V' goes to the next stage and to the decoder, L' to the next fusion and, after the last one, to the decoder. Padding
    is masked on both sides. `feeds_next` has no effect, since the decoder gets V' too.

    w1 is applied to words before pixels gather them, and pixels are averaged before their value projection. Both are
    exact and need fewer rows.

    Args:
        bounded_gate: End the gates in tanh, as in LAVT, from which the module is derived. The paper only says "a
            two-layer MLP".
    """

    def __init__(self, *, pixel_dim: int, word_dim: int, feeds_next: bool = True, bounded_gate: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(pixel_dim, pixel_dim)
        self.pixel_value = nn.Linear(pixel_dim, pixel_dim)
        self.key = nn.Linear(word_dim, pixel_dim)
        self.word_value = nn.Linear(word_dim, pixel_dim)
        self.w1 = nn.Linear(pixel_dim, pixel_dim)
        self.w2 = nn.Linear(pixel_dim, word_dim)
        self.pixel_update = Update(pixel_dim, bounded_gate=bounded_gate)
        self.word_update = Update(word_dim, bounded_gate=bounded_gate)

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        # One affinity matrix, two softmaxes
        scores = affinity(self.query(pixels), self.key(words))  # (E, P, L)
        to_words = masked_softmax(scores, word_mask[:, None]).to(pixels.dtype)
        mask = None if pixel_mask is None else pixel_mask[:, None]
        to_pixels = masked_softmax(scores.transpose(1, 2), mask).to(pixels.dtype)  # (E, L, P)
        # Cross-attention: pixels to words, and words to pixels
        pixel_response = torch.bmm(to_words, self.w1(self.word_value(words)))  # (E, P, C)
        word_response = self.w2(self.pixel_value(torch.bmm(to_pixels, pixels)))  # (E, L, D)
        # Gated updates
        pixels = self.pixel_update(pixels, pixel_response)
        return Fused(pixels, pixels, self.word_update(words, word_response))
