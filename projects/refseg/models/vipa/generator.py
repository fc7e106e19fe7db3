"""Visual expression generator (VIPA, section III-B): informative parts of the image as tokens, one for each cue.

Letters: B rows of pixels (images, or expressions where words were fused before), E expressions, K the most expressions
of an image, L tokens of the expression, P pixels, C channels of pixels, D of words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import AttentionLayer, Groups
from refseg.models.vipa.retrieval import TokenRetrieval


class VisualExpression(NamedTuple):
    """`tokens` (E, T, D), for keys and values; `valid` (E, T): which of them there are, None: all. Where there are
    cues, T is L, and of each cue's token there are its `scores` (E, L, P) and the mask `retrieved` (E, L, P)."""

    tokens: Tensor
    valid: Tensor | None
    scores: Tensor | None = None
    retrieved: Tensor | None = None


class VisualExpressionGenerator(BaseModule):
    """Retrieves pixels for each cue, adds them up, and refines the sums.

        F_a = LayerNorm(linear(sum of the retrieved pixels))         eq. 5
        F_r = the cue reads the pixels that it retrieved, MLP        eq. 6
        E_V = cues read each other, MLP                              eq. 7

    The equations have no norms; without one, F_a grows with the number of pixels. Here they stand after every sum. The
    mask of eq. 6 is taken as it is: gradients reach the scores through eq. 5.

    Args:
        retrieve: False is Table VI a without step 1, and b without cues: the pixels themselves, all of them, are the
            tokens that are refined. Eqs. 5-7 with M = 1 would be the other reading; all cues are the same then, and one
            token is nothing that attention could choose from.
        joint_dim, ratio, temperature, noise: see `TokenRetrieval`.
        refine: False is Table VI a without step 2: E_V is F_a.
        num_heads, ffn_ratio: of eqs. 6 and 7; not given.
    """

    def __init__(
        self,
        *,
        pixel_dim: int,
        word_dim: int,
        retrieve: bool = True,
        joint_dim: int = 512,
        ratio: float = 0.3,
        temperature: float = 1.0,
        noise: float = 1.0,
        refine: bool = True,
        num_heads: int = 8,
        ffn_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.retrieval = (
            TokenRetrieval(
                pixel_dim=pixel_dim,
                word_dim=word_dim,
                joint_dim=joint_dim,
                ratio=ratio,
                temperature=temperature,
                noise=noise,
            )
            if retrieve
            else None
        )
        self.project = nn.Linear(pixel_dim, word_dim)
        self.norm = nn.LayerNorm(word_dim)
        ffn_dim = ffn_ratio * word_dim
        self.cross_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim, memory_dim=pixel_dim) if refine else None
        self.self_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim) if refine else None

    def forward(
        self, pixels: Tensor, pixel_mask: Tensor | None, words: Tensor, cues: Tensor, *, groups: Groups
    ) -> VisualExpression:
        """pixels (B, P, C); pixel_mask (B, P), None where no image is padded; words (E, L, D); cues (E, L) bool; groups
        of expressions by rows of pixels. Pixels that expressions share are not copied; without retrieval they must not
        be shared, since nothing else here tells expressions apart."""
        if self.retrieval is None:
            return VisualExpression(self._share(self._read(pixels, pixels, pixel_mask), pixel_mask), pixel_mask)
        valid = None if pixel_mask is None else pixel_mask[torch.tensor(groups.rows, device=pixels.device)]  # (E, P)
        scores = self.retrieval.scores(pixels, words, groups)
        retrieved = self.retrieval(scores, valid)
        sums = torch.bmm(groups.group(retrieved.to(pixels.dtype)), pixels)  # (B, K L, C)
        tokens = groups.ungroup(self._read(sums, pixels, groups.group(retrieved.detach() > 0.5)))
        return VisualExpression(self._share(tokens, cues), cues, scores, retrieved)

    def _read(self, sums: Tensor, pixels: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Eqs. 5 and 6: sums (B, T, C) of pixels (B, P, C) that each may read -> (B, T, D)."""
        tokens = self.norm(self.project(sums))
        return tokens if self.cross_attn_layer is None else self.cross_attn_layer(tokens, pixels, attn_mask)

    def _share(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Eq. 7."""
        return tokens if self.self_attn_layer is None else self.self_attn_layer(tokens, tokens, valid)
