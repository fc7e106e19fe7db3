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

Distributor = Literal["mean", "visual"]


class Initial(NamedTuple):
    """Initial tokens of latent expressions.

    `subject` (E, 1, C), its token in the text `subject_token` (E,), and `attributes` (E, K, C) of all N expressions.
    """

    subject: Tensor
    subject_token: Tensor
    attributes: Tensor


def semantic_tokens(word_mask: Tensor) -> Tensor:
    """Return the tokens between the first and the last one of each text, which mark its ends: (E, L) bool."""
    positions = torch.arange(word_mask.shape[1], device=word_mask.device)
    return word_mask & (positions > 0) & (positions < word_mask.sum(1, keepdim=True) - 1)


def choose(scores: Tensor, allowed: Tensor, temperature: float, *, training: bool) -> Tensor:
    """Choose one allowed token per row, as one-hot (E, L): the best, or in training a Gumbel-softmax sample.

    The sample's gradient is that of the perturbed softmax (straight-through).

    Args:
        scores: (E, L).
        allowed: (E, L) bool, at least one True per row.
        temperature: Of the Gumbel-softmax.
        training: Whether to sample.
    """
    scores = scores.float().masked_fill(~allowed, torch.finfo(torch.float32).min / 2)
    if training:
        return F.gumbel_softmax(scores, tau=temperature, hard=True)
    return F.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)


class LatentExpressions(BaseModule):
    """Make N latent expressions from the token embeddings of a text, each headed by the text's subject.

    Expression i drops semantic tokens with probability p_i (in training only). A learned position map phi_i of (k_i, m)
    turns the remaining tokens into k_i attribute tokens; padding counts as zero.

    The subject is the token with the highest score of a linear layer, chosen by Gumbel-softmax. Tokens that mark the
    ends of the text cannot be subjects, unless there is nothing else.

    Args:
        embed_dim: C.
        lengths: k_i. In the paper's ablation, two expressions of 4 and 10 are best.
        drop_rates: p_i. We do not have the paper's values; here the shorter expression drops more.
        num_words: m, the tokenizer's `max_words`.
        temperature: Temperature of the Gumbel-softmax. The paper does not give it; 1 leaves scores and noise as they
            are.
        apart: Each expression, the text included, attends to the image and to itself, and only pixels attend to all.
            The paper does not say. If all attend to all, the subjects, which start equal, stay equal, and the
            distributor only changes the pixels' subject.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        lengths: Sequence[int] = (4, 10),
        drop_rates: Sequence[float] = (0.4, 0.2),
        num_words: int = 20,
        temperature: float = 1.0,
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
        if temperature <= 0:
            raise ConfigError(f"latents.temperature must be positive, not {temperature}.")
        self.lengths, self.drop_rates = tuple(lengths), tuple(drop_rates)
        self.num_words, self.temperature, self.apart = num_words, temperature, apart
        self.position_maps = nn.ModuleList(nn.Linear(num_words, length, bias=False) for length in lengths)
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
        allowed = torch.where(semantic.any(1, keepdim=True), semantic, word_mask)
        chosen = choose(self.score(words)[..., 0], allowed, self.temperature, training=self.training)
        subject = torch.bmm(chosen[:, None].to(words.dtype), words)  # (E, 1, C)
        # Drop tokens, then map positions to attributes
        attributes = []
        for position_map, rate in zip(self.position_maps, self.drop_rates, strict=True):
            mask = word_mask
            if self.training and rate:
                mask = mask & ~(semantic & (torch.rand(semantic.shape, device=semantic.device) < rate))
            phi = position_map.weight[:, : words.shape[1]]  # (k_i, L)
            attributes.append(phi.to(words.dtype) @ (words * mask[..., None]))
        return Initial(subject, chosen.detach().argmax(1), torch.cat(attributes, 1))

    def attn_mask(self, valid: Tensor, num_words: int, num_others: int) -> Tensor | None:
        """Return the attention mask (E, T', T) of the last T' tokens; None if all valid tokens may attend to each
        other.

        The last T' tokens are the text's words, N subjects, K attributes, and `num_others` that belong to the text.

        Args:
            valid: (E, T), True on real tokens.
            num_words: Number of words of the text, with padding.
            num_others: Number of further tokens.
        """
        if not self.apart:
            return None
        expressions = [0] * num_words + [*range(1, 1 + len(self.lengths))]
        expressions += [number for number, length in enumerate(self.lengths, 1) for _ in range(length)]
        of = torch.tensor(expressions + [0] * num_others, device=valid.device)
        same = F.pad(of[:, None] == of, (valid.shape[1] - len(of), 0), value=True)  # (T', T)
        return valid[:, None] & same


def distribute(visual: Tensor, subjects: Tensor, way: Distributor) -> tuple[Tensor, Tensor]:
    """Align the subject tokens of the pixels (E, 1, C) and of the expressions (E, N, C) (subject distributor).

    "mean": each becomes the mean of all N + 1. "visual": those of the expressions become the pixels'. The paper's
    formula is not in the text we have.
    """
    shared = torch.cat([visual, subjects], 1).mean(1, keepdim=True) if way == "mean" else visual
    return shared, shared.expand_as(subjects)
