"""Latent expressions and their subject (LatentVG, "Latent Expression Initialization" and "Subject Distributor").

Letters: E expressions, L tokens of the text, m their maximum, N latent expressions of k_i attribute tokens each, K the
sum of k_i, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError

Distributor = Literal["visual", "mean"]


class Tokens(NamedTuple):
    """Language tokens of E expressions: the text's `words` (E, L, C), the `classes` (E, N, C), `subjects` (E, N, C) and
    `attributes` (E, K, C) of its latent expressions, and the `empty` token (E, 0 or 1, C)."""

    words: Tensor
    classes: Tensor
    subjects: Tensor
    attributes: Tensor
    empty: Tensor


class TokenLayout(nn.Module):
    """Order of the language tokens, which is that of `Tokens`.

    A latent expression is [class token, subject, attributes], as in the paper. Its tokens take the positions of a text.

    Args:
        lengths: k_i; empty without latent expressions.
        empty_token: Whether there is an empty token. It belongs to the text.
    """

    expression_of: Tensor
    position_of: Tensor

    def __init__(self, lengths: Sequence[int], *, empty_token: bool) -> None:
        super().__init__()
        numbers = range(1, 1 + len(lengths))
        self.counts = [len(lengths), len(lengths), sum(lengths), int(empty_token)]
        # The expression of each token after the words; 0 is the text
        expressions = [*numbers, *numbers, *(i for i, k in zip(numbers, lengths, strict=True) for _ in range(k))]
        expressions += [0] * empty_token
        # The position of each token of the latent expressions
        positions = [0] * len(lengths) + [1] * len(lengths) + [2 + place for k in lengths for place in range(k)]
        self.register_buffer("expression_of", torch.tensor(expressions, dtype=torch.long), persistent=False)
        self.register_buffer("position_of", torch.tensor(positions, dtype=torch.long), persistent=False)

    def split(self, tokens: Tensor) -> Tokens:
        """Split tokens (E, L + N + N + K + 0 or 1, C)."""
        return Tokens(*tokens.split([tokens.shape[1] - sum(self.counts), *self.counts], 1))

    def attn_mask(self, valid: Tensor, num_words: int) -> Tensor:
        """Return which tokens the language tokens may attend to: those of their own expression, and pixels.

        Args:
            valid: (E, T), True on valid pixels and language tokens.
            num_words: L.

        Returns:
            (E, T', T), T' the number of language tokens.
        """
        of = F.pad(self.expression_of, (num_words, 0))
        same = F.pad(of[:, None] == of, (valid.shape[1] - of.shape[0], 0), value=True)  # (T', T)
        return valid[:, None] & same


class Initial(NamedTuple):
    """Initial latent expressions.

    Args:
        tokens: (E, N + N + K, C), in the order of `TokenLayout`, without positions.
        subject: (E, 1, C), one of the text's tokens.
        subject_token: (E,), its index.
        subject_prob: (E,), its probability.
    """

    tokens: Tensor
    subject: Tensor
    subject_token: Tensor
    subject_prob: Tensor


def semantic_tokens(word_mask: Tensor) -> Tensor:
    """Return the tokens between the first and the last one of each text, which mark its ends: (E, L) bool."""
    positions = torch.arange(word_mask.shape[1], device=word_mask.device)
    return word_mask & (positions > 0) & (positions < word_mask.sum(1, keepdim=True) - 1)


class LatentExpressions(BaseModule):
    """Make N latent expressions from the token embeddings of a text: [class token, subject, attributes].

    The class token is a parameter. Expression i drops semantic tokens with probability p_i (in training only). A
    learned position map phi_i of (k_i, m) turns the remaining tokens into k_i attribute tokens; padding counts as zero.

    The subject is the token with the highest score of a linear layer, chosen by a straight-through Gumbel-softmax in
    training. Tokens that mark the ends of the text cannot be subjects, unless there is nothing else.

    Args:
        embed_dim: C.
        lengths: k_i. In the paper's ablation, two expressions of 4 and 10 are best.
        drop_rates: p_i. We do not have the paper's values; here the shorter expression drops more.
        num_words: m, the tokenizer's `max_words`.
        temperature: Temperature of the Gumbel-softmax. The paper does not give it; 1 leaves scores and noise as they
            are.
        score_norm: Apply a LayerNorm before the scores. It is ours. Embeddings are so small that without it the scores
            start with a standard deviation of 0.01, and the Gumbel noise of 1.28 hides them.
        class_token_std: Initial standard deviation of the class tokens. It is ours. BEiT-3's own 0.02 is lost beside
            the first layer's update of about 1.5, and the latent expressions of a text become one again.
        apart: Each expression, the text included, attends to the image and to itself, and only pixels attend to all.
            The paper does not say. If all attend to all, the subjects, which start equal, stay equal, and the
            distributor has little to do.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        lengths: Sequence[int] = (4, 10),
        drop_rates: Sequence[float] = (0.4, 0.2),
        num_words: int = 20,
        temperature: float = 1.0,
        score_norm: bool = True,
        class_token_std: float = 1.0,
        apart: bool = True,
    ) -> None:
        super().__init__()
        if not lengths or min(lengths) < 1 or len(lengths) != len(drop_rates):
            raise ConfigError(
                f"latents.lengths {tuple(lengths)} and latents.drop_rates {tuple(drop_rates)} must have the same "
                "number of entries, at least one, and lengths must be positive."
            )
        if not all(0 <= rate < 1 for rate in drop_rates):
            raise ConfigError(f"latents.drop_rates must be in [0, 1), not {tuple(drop_rates)}.")
        for name, value in (("temperature", temperature), ("class_token_std", class_token_std)):
            if value <= 0:
                raise ConfigError(f"latents.{name} must be positive, not {value}.")
        self.lengths, self.drop_rates = tuple(lengths), tuple(drop_rates)
        self.num_words, self.temperature, self.apart = num_words, temperature, apart
        self.class_tokens = nn.Parameter(class_token_std * torch.randn(1, len(lengths), embed_dim))
        self.position_maps = nn.ModuleList(nn.Linear(num_words, length, bias=False) for length in lengths)
        self.norm = nn.LayerNorm(embed_dim) if score_norm else nn.Identity()
        self.score = nn.Linear(embed_dim, 1, bias=False)  # a bias would not change the softmax

    def forward(self, words: Tensor, word_mask: Tensor) -> Initial:
        """Words (E, L, C), without positions, and word_mask (E, L), at least one True per row -> initial tokens."""
        if words.shape[1] > self.num_words:
            raise ConfigError(
                f"A text has {words.shape[1]} tokens, more than latents.num_words={self.num_words}. "
                "Set it to the tokenizer's max_words."
            )
        # Choose the subject
        semantic = semantic_tokens(word_mask)
        allowed = semantic | (word_mask & ~semantic.any(1, keepdim=True))
        scores = self.score(self.norm(words))[..., 0].float()  # (E, L)
        scores = scores.masked_fill(~allowed, torch.finfo(torch.float32).min / 2)
        if self.training:
            chosen = F.gumbel_softmax(scores, tau=self.temperature, hard=True)
        else:
            # F.one_hot would make the number of words a constant of exported graphs
            places = torch.arange(scores.shape[1], device=scores.device)
            chosen = (places == scores.argmax(1, keepdim=True)).float()
        subject = torch.bmm(chosen[:, None].to(words.dtype), words)  # (E, 1, C)
        # Drop tokens, then map positions to attributes
        attributes = []
        for position_map, rate in zip(self.position_maps, self.drop_rates, strict=True):
            mask = word_mask
            if self.training and rate:
                mask = mask & ~(semantic & (torch.rand(semantic.shape, device=semantic.device) < rate))
            phi = position_map.weight[:, : words.shape[1]]  # (k_i, L)
            attributes.append(phi.to(words.dtype) @ (words * mask[..., None]))
        # Class tokens and subjects come first
        classes = self.class_tokens.to(words.dtype).expand(words.shape[0], -1, -1)
        tokens = torch.cat([classes, subject.expand_as(classes), *attributes], 1)
        probs = (scores / self.temperature).softmax(1)
        return Initial(tokens, subject, chosen.detach().argmax(1), (probs * chosen).sum(1).detach())


def distribute(visual: Tensor, subjects: Tensor, way: Distributor) -> tuple[Tensor, Tensor]:
    """Align the subject tokens of the pixels (E, 1, C) and of the latent expressions (E, N, C) (subject distributor).

    "visual": those of the latent expressions become the pixels'. "mean": all N + 1 become their mean.
    """
    shared = torch.cat([visual, subjects], 1).mean(1, keepdim=True) if way == "mean" else visual
    return shared, shared.expand_as(subjects)
