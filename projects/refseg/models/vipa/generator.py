"""Visual expression generator (VIPA, section III-B): informative parts of the image as tokens, one per cue.

Letters: B rows of pixels (images, or expressions if the encoder fuses words), E expressions, K the most expressions of
an image, L tokens of the expression, P pixels, C channels of pixels, D of words, T tokens of the key-value set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import AttentionLayer, Groups
from refseg.models.vipa.retrieval import TokenRetrieval


class VisualExpression(NamedTuple):
    """Key-value set of the decoder.

    `tokens` (E, T, D) and their mask `valid` (E, T); None if all are valid. With retrieval T is L, and each cue has its
    `scores` (E, L, P) and the mask `retrieved` (E, L, P).
    """

    tokens: Tensor
    valid: Tensor | None
    scores: Tensor | None = None
    retrieved: Tensor | None = None


class VisualExpressionGenerator(BaseModule):
    """Retrieve pixels for each cue, sum them up, and refine the sums.

        F_a = LayerNorm(linear(sum of the retrieved pixels))             eq. 5
        F_r = cross-attention of the cue to its retrieved pixels, MLP    eq. 6
        E_V = self-attention of cues, MLP                                eq. 7

    The equations have no norms, but without one F_a grows with the number of pixels. We add one after every sum. The
    mask of eq. 6 is detached: gradients reach the scores through eq. 5.

    Args:
        pixel_dim: C.
        word_dim: D.
        retrieve: False is Table VI a without step 1, and b without cues: all pixels are the tokens that are refined.
            The other reading, eqs. 5-7 with M = 1, makes all cues the same, which leaves attention nothing to choose
            from.
        joint_dim, ratio, temperature, noise: See `TokenRetrieval`.
        refine: False is Table VI a without step 2: E_V is F_a.
        num_heads, ffn_ratio: Of eqs. 6 and 7. The paper does not give them.
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
        self.retrieval = None
        if retrieve:
            settings: dict[str, Any] = dict(joint_dim=joint_dim, ratio=ratio, temperature=temperature, noise=noise)
            self.retrieval = TokenRetrieval(pixel_dim=pixel_dim, word_dim=word_dim, **settings)
        self.project = nn.Linear(pixel_dim, word_dim)
        self.norm = nn.LayerNorm(word_dim)
        ffn_dim = ffn_ratio * word_dim
        self.cross_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim, memory_dim=pixel_dim) if refine else None
        self.self_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim) if refine else None

    def forward(
        self, pixels: Tensor, pixel_mask: Tensor | None, words: Tensor, cues: Tensor, *, groups: Groups
    ) -> VisualExpression:
        """Return the visual expression.

        Args:
            pixels: (B, P, C). With retrieval they may be shared by expressions and are not copied. Without, they must
                have one row per expression, since nothing else here depends on the words.
            pixel_mask: (B, P), True on the image; None without padding.
            words: (E, L, D).
            cues: (E, L) bool.
            groups: Expressions by rows of pixels.
        """
        if self.retrieval is None:
            tokens = self._cross_attend(pixels, pixels, pixel_mask)
            return VisualExpression(self._self_attend(tokens, pixel_mask), pixel_mask)
        # Retrieve pixels (eqs. 1-3)
        valid = None if pixel_mask is None else pixel_mask[torch.tensor(groups.rows, device=pixels.device)]  # (E, P)
        scores = self.retrieval.scores(pixels, words, groups)
        retrieved = self.retrieval(scores, valid)
        # Sum them up and attend to them (eqs. 5 and 6)
        sums = torch.bmm(groups.group(retrieved.to(pixels.dtype)), pixels)  # (B, K L, C)
        tokens = groups.ungroup(self._cross_attend(sums, pixels, groups.group(retrieved.detach() > 0.5)))
        # Self-attention of cues (eq. 7)
        return VisualExpression(self._self_attend(tokens, cues), cues, scores, retrieved)

    def _cross_attend(self, sums: Tensor, pixels: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Eqs. 5 and 6: project sums (B, T, C) of pixels and let them attend to pixels (B, P, C): (B, T, D)."""
        tokens = self.norm(self.project(sums))
        return tokens if self.cross_attn_layer is None else self.cross_attn_layer(tokens, pixels, attn_mask)

    def _self_attend(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Eq. 7."""
        return tokens if self.self_attn_layer is None else self.self_attn_layer(tokens, tokens, valid)
