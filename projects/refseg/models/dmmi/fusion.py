"""DMMI's fusion: LAVT's, with neighborhoods of pixels and of words, in both directions.

Letters: E expressions, P = h * w pixels of a stage, L words, C channels of the stage, D channels of words.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.encoders.vision import flatten_map, unflatten_map
from refseg.models.fusion.base import Fused, Fusion, gate, init_linears, instance_norm
from refseg.models.layers import masked_softmax
from refseg.registry import MODELS

PATCHES = {1: 1, 3: 2, 5: 4}  # sides of the neighborhoods of pixels -> divisors of C
NGRAMS = {1: 1, 2: 2, 3: 3}  # numbers of neighboring words -> divisors of C


@MODELS.register_module()
class MultiScaleFusion(Fusion):
    """Cross-attention from neighborhoods of pixels to words and from n-grams to pixels, and a gate for the next stage.

        A = sum of s_k softmax(norm(conv_k(norm(reduce_k(V)))) key_k(L)^T / sqrt(C)), k = 1, 3, 5
        F = GELU(project(GELU(vision(V)) * norm(A value(L) out)))
        V' = V + gate(F) * F
        B = sum of t_n softmax(ngram_n(shrink_n(L)) norm(pixel_key_n(V))^T / sqrt(C)), n = 1, 2, 3
        L' = L + GELU(update(word_out(B norm(pixel_value(V)))))

    s and t are softmaxes of three parameters each. A bigram is a word and the one before it, a trigram has the one
    after it, too. The decoder gets F, the next stage V', the next fusion and the decoder L'.

    As in the published code, n-grams read the padding behind a phrase: the last word's trigram has the first padding
    token, or twice the last word where no padding follows. Padding itself gets word_out's bias for an update. Biases
    before a norm and the gate of the last stage, which have no effect, are left out.
    """

    needs_size: ClassVar[bool] = True

    def __init__(self, *, pixel_dim: int, word_dim: int, feeds_next: bool = True) -> None:
        super().__init__()
        self.vision = nn.Linear(pixel_dim, pixel_dim)
        self.reduce = nn.ModuleList(nn.Linear(pixel_dim, pixel_dim // part, bias=False) for part in PATCHES.values())
        self.convs = nn.ModuleList(
            nn.Conv2d(pixel_dim // part, pixel_dim, side, padding=side // 2, bias=False)
            for side, part in PATCHES.items()
        )
        self.key = nn.ModuleList(nn.Linear(word_dim, pixel_dim) for _ in PATCHES)
        self.value = nn.Linear(word_dim, pixel_dim)
        self.out = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.project = nn.Linear(pixel_dim, pixel_dim)
        self.shrink = nn.ModuleList(nn.Linear(word_dim, pixel_dim // part) for part in NGRAMS.values())
        self.ngrams = nn.ModuleList(nn.Conv1d(pixel_dim // part, word_dim, n) for n, part in NGRAMS.items())
        self.pixel_key = nn.ModuleList(nn.Linear(pixel_dim, word_dim, bias=False) for _ in NGRAMS)
        self.pixel_value = nn.Linear(pixel_dim, word_dim, bias=False)
        self.word_out, self.update = nn.Linear(word_dim, word_dim), nn.Linear(word_dim, word_dim)
        self.patch_scores, self.ngram_scores = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.gate = gate(pixel_dim) if feeds_next else None
        if self.gate is not None:
            init_linears(self.gate)

    def forward(  # type: ignore[override]
        self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None, size: tuple[int, int]
    ) -> Fused:
        scale = pixels.shape[-1] ** -0.5
        # Cross-attention: neighborhoods of pixels to words
        to_words = []
        for reduce, conv, key in zip(self.reduce, self.convs, self.key, strict=True):
            reduced = instance_norm(reduce(pixels), pixel_mask)
            if pixel_mask is not None:
                reduced = reduced * pixel_mask[..., None]  # as beyond the border
            query = instance_norm(flatten_map(conv(unflatten_map(reduced, size)))[0], pixel_mask) * scale  # (E, P, C)
            to_words.append(masked_softmax(torch.bmm(query, key(words).transpose(1, 2)), word_mask[:, None]))
        attention = weighted(to_words, self.patch_scores).to(words.dtype)  # (E, P, L)
        gathered = instance_norm(torch.bmm(attention, self.out(self.value(words))), pixel_mask)
        level = F.gelu(self.project(F.gelu(self.vision(pixels)) * gathered))
        # Cross-attention: n-grams to pixels
        mask = None if pixel_mask is None else pixel_mask[:, None]
        to_pixels = []
        for n, shrink, ngram, pixel_key in zip(NGRAMS, self.shrink, self.ngrams, self.pixel_key, strict=True):
            neighbors = F.pad(shrink(words).transpose(1, 2), (n // 2, (n - 1) // 2), mode="replicate")
            query = ngram(neighbors).transpose(1, 2) * word_mask[..., None] * scale  # (E, L, D)
            scores = torch.bmm(query, instance_norm(pixel_key(pixels), pixel_mask).transpose(1, 2))
            to_pixels.append(masked_softmax(scores, mask))
        attention = weighted(to_pixels, self.ngram_scores).to(pixels.dtype)  # (E, L, P)
        value = instance_norm(self.pixel_value(pixels), pixel_mask)
        words = words + F.gelu(self.update(self.word_out(torch.bmm(attention, value))))
        # Language gate
        return Fused(level, pixels if self.gate is None else pixels + self.gate(level) * level, words)


def weighted(maps: list[Tensor], scores: Tensor) -> Tensor:
    """Sum maps with the softmax of their scores for weights."""
    return (torch.stack(maps, -1) * scores.softmax(0)).sum(-1)
