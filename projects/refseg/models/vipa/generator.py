"""Visual expression (VIPA, section III-B): informative parts of the image as tokens, the decoder's key-value set.

Letters: B rows of pixels (images, or expressions if the encoder fuses words), E expressions, K the most expressions of
an image, L tokens of the expression, P pixels, C channels of pixels, D of words, T tokens of the key-value set.
"""

from __future__ import annotations

from typing import NamedTuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import AttentionLayer, Groups, masked_mean
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


class ContextRefinement(BaseModule):
    """Layers of eqs. 5 to 7, which both generators below share. Arguments as in `VisualExpressionGenerator`."""

    def __init__(
        self, *, pixel_dim: int, word_dim: int, refine: bool = True, num_heads: int = 8, ffn_ratio: int = 4
    ) -> None:
        super().__init__()
        self.project = nn.Linear(pixel_dim, word_dim)
        self.norm = nn.LayerNorm(word_dim)
        ffn_dim = ffn_ratio * word_dim
        self.cross_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim, memory_dim=pixel_dim) if refine else None
        self.self_attn_layer = AttentionLayer(word_dim, num_heads, ffn_dim) if refine else None

    def cross_attend(self, x: Tensor, pixels: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Project x (B, T, C) and let it attend to pixels (B, P, C): (B, T, D)."""
        tokens = self.norm(self.project(x))
        return tokens if self.cross_attn_layer is None else self.cross_attn_layer(tokens, pixels, attn_mask)

    def self_attend(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Let tokens (E, T, D) attend to each other."""
        return tokens if self.self_attn_layer is None else self.self_attn_layer(tokens, tokens, valid)


class VisualExpressionGenerator(ContextRefinement):
    """Retrieve pixels for each cue, sum them up, and refine the sums.

        F_a = LayerNorm(linear(sum of the retrieved pixels))             eq. 5
        F_r = cross-attention of the cue to its retrieved pixels, MLP    eq. 6
        E_V = self-attention of cues, MLP                                eq. 7

    The equations have no norms, but without one F_a grows with the number of pixels. We add one after every sum. The
    mask of eq. 6 is detached: gradients reach the scores through eq. 5.

    Args:
        pixel_dim: C.
        word_dim: D.
        joint_dim: Channels of the joint space in which words and pixels are compared. The paper does not give them.
        ratio: Share of pixels that a token retrieves, the paper's r (Fig. 4).
        temperature: Initial tau of eq. 2. The paper gives none; 1 leaves the scores as they are.
        noise: Factor of eq. 2's Gumbel noise, 1 in the paper. At 0 the best pixels are retrieved in training too.
        centered: Subtract the mean of the image's pixels before eq. 5's sum. The paper does not. Reason: the sum of
            30 % of the pixels is mostly the mean pixel, whichever they are, so all cues get nearly the same token, and
            the mask's losses have little effect on the scores.
        refine: False is Table VI a without step 2: E_V is F_a.
        num_heads: Attention heads of eqs. 6 and 7. The paper does not give them.
        ffn_ratio: Width of the MLPs of eqs. 6 and 7 relative to D. The paper does not give it.
    """

    def __init__(
        self,
        *,
        pixel_dim: int,
        word_dim: int,
        joint_dim: int = 512,
        ratio: float = 0.3,
        temperature: float = 1.0,
        noise: float = 1.0,
        centered: bool = False,
        refine: bool = True,
        num_heads: int = 8,
        ffn_ratio: int = 4,
    ) -> None:
        super().__init__(
            pixel_dim=pixel_dim, word_dim=word_dim, refine=refine, num_heads=num_heads, ffn_ratio=ffn_ratio
        )
        self.retrieval = TokenRetrieval(
            pixel_dim=pixel_dim,
            word_dim=word_dim,
            joint_dim=joint_dim,
            ratio=ratio,
            temperature=temperature,
            noise=noise,
        )
        self.centered = centered

    def forward(
        self,
        pixels: Tensor,
        pixel_mask: Tensor | None,
        words: Tensor,
        cues: Tensor,
        *,
        image_of: Tensor | None,
        groups: Groups,
    ) -> VisualExpression:
        """Return the visual expression.

        Args:
            pixels: (B, P, C). Expressions of an image may share a row, which is not copied.
            pixel_mask: (B, P), True on the image; None without padding.
            words: (E, L, D).
            cues: (E, L) bool.
            image_of: (E,), the row of pixels of each expression; None if rows are expressions.
            groups: Expressions by rows of pixels.
        """
        # Retrieve pixels (eqs. 1-3)
        shared = pixel_mask is not None and image_of is not None
        valid = pixel_mask.index_select(0, image_of) if shared else pixel_mask  # (E, P)
        scores = self.retrieval.scores(pixels, words, groups)
        retrieved = self.retrieval(scores, valid)
        # Sum them up (eq. 5)
        parts = pixels
        if self.centered:
            mean = pixels.mean(1) if pixel_mask is None else masked_mean(pixels, pixel_mask)
            parts = pixels - mean[:, None]
        sums = groups.group(retrieved.to(pixels.dtype)) @ parts  # (B, K L, C)
        # Cross-attention of each sum to its pixels (eq. 6)
        tokens = groups.ungroup(self.cross_attend(sums, pixels, groups.group(retrieved.detach() > 0.5)))
        # Self-attention of cues (eq. 7)
        return VisualExpression(self.self_attend(tokens, cues), cues, scores, retrieved)


class AllPixelsGenerator(ContextRefinement):
    """Refine all pixels: Table VI a without step 1, and VI b without cues.

    The other reading, eqs. 5-7 with M = 1, makes all cues the same, which leaves attention nothing to choose from.
    Nothing here depends on the words, so pixels must have one row per expression.
    """

    def forward(self, pixels: Tensor, pixel_mask: Tensor | None) -> VisualExpression:
        """Return the visual expression of pixels (E, P, C) and their mask (E, P)."""
        tokens = self.cross_attend(pixels, pixels, pixel_mask)
        return VisualExpression(self.self_attend(tokens, pixel_mask), pixel_mask)
