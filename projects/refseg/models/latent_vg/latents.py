"""Latent expressions and their subject (Latent-VG, "Latent Expression Initialization" and "Subject Distributor").

Letters: E expressions, L tokens of the text, m the most there may be, N latent expressions of k_i attribute tokens
each, K the sum of k_i, C channels.
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
    """`subject` (E, 1, C) and the token of the text that it is, `subject_token` (E,); `attributes` (E, K, C), those of
    the N expressions one after the other."""

    subject: Tensor
    subject_token: Tensor
    attributes: Tensor


def semantic_tokens(word_mask: Tensor) -> Tensor:
    """(E, L) bool: tokens between the first and the last one of each text, which begin and end it."""
    places = torch.arange(word_mask.shape[1], device=word_mask.device)
    return word_mask & (places > 0) & (places < word_mask.sum(1, keepdim=True) - 1)


def choose(scores: Tensor, allowed: Tensor, temperature: float, *, training: bool) -> Tensor:
    """Of scores (E, L) one of the allowed tokens (E, L), of each row one at least: 1 there, 0 elsewhere. In training
    with Gumbel noise, and the gradient of the perturbed softmax (straight-through); otherwise the best."""
    scores = scores.float().masked_fill(~allowed, torch.finfo(torch.float32).min / 2)
    if training:
        return F.gumbel_softmax(scores, tau=temperature, hard=True)
    return F.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)


class LatentExpressions(BaseModule):
    """The text's token embeddings -> N other sequences, each with the text's subject at its head.

    Expression i: semantic tokens are left out with probability p_i, in training only; then a learned map of places,
    phi_i of (k_i, m), makes k_i attribute tokens of what is left. Padding is zero to it.

    The subject is the token with the highest score of a linear layer, chosen by Gumbel-softmax. Tokens that begin and
    end the text are no subjects, unless there is nothing else.

    Args:
        embed_dim: C.
        lengths: k_i; the paper's ablation found two expressions, of 4 and 10, best.
        drop_rates: p_i, which we have no text of. Here the shorter expression loses more.
        num_words: m, the tokenizer's `max_words`.
        temperature: of the Gumbel-softmax; not told. 1 leaves scores and noise as they are.
        apart: each expression, the text's too, reads the image and itself, and only pixels read them all. It is not
            told; if all read all, the subjects, which begin alike, stay alike by themselves, and there would be nothing
            for the distributor to do but for the pixels' one.
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
                f"latents: lengths {tuple(lengths)} and drop_rates {tuple(drop_rates)}: one each, or more"
            )
        if not all(0 <= rate < 1 for rate in drop_rates):
            raise ConfigError(f"latents.drop_rates must be in [0, 1), not {tuple(drop_rates)}")
        if temperature <= 0:
            raise ConfigError(f"latents.temperature must be positive, not {temperature}")
        self.lengths, self.drop_rates = tuple(lengths), tuple(drop_rates)
        self.num_words, self.temperature, self.apart = num_words, temperature, apart
        self.position_maps = nn.ModuleList(nn.Linear(num_words, length, bias=False) for length in lengths)
        self.score = nn.Linear(embed_dim, 1, bias=False)  # a softmax does not see a bias

    def forward(self, words: Tensor, word_mask: Tensor) -> Initial:
        """words (E, L, C), without positions; word_mask (E, L), one at least in each row."""
        if words.shape[1] > self.num_words:
            raise ConfigError(
                f"a text of {words.shape[1]} tokens, and latents.num_words={self.num_words}: it must be the "
                "tokenizer's max_words"
            )
        semantic = semantic_tokens(word_mask)
        subject, token = self._subject(words, semantic, word_mask)
        attributes = []
        for position_map, rate in zip(self.position_maps, self.drop_rates, strict=True):
            kept = word_mask & ~self._dropped(semantic, rate)
            phi = position_map.weight[:, : words.shape[1]]  # (k_i, L)
            attributes.append(phi.to(words.dtype) @ (words * kept[..., None]))
        return Initial(subject, token, torch.cat(attributes, 1))

    def attn_mask(self, valid: Tensor, num_words: int, num_others: int) -> Tensor | None:
        """(E, T', T) bool: which of all T tokens, of which `valid` (E, T) are real, each of the last T' may read: the
        text's words, N subjects, K attributes, and others that belong to the text. None: what may be read at all."""
        if not self.apart:
            return None
        expressions = [0] * num_words + [*range(1, 1 + len(self.lengths))]
        expressions += [number for number, length in enumerate(self.lengths, 1) for _ in range(length)]
        of = torch.tensor(expressions + [0] * num_others, device=valid.device)
        same = F.pad(of[:, None] == of, (valid.shape[1] - len(of), 0), value=True)  # (T', T)
        return valid[:, None] & same

    def _subject(self, words: Tensor, semantic: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        allowed = torch.where(semantic.any(1, keepdim=True), semantic, word_mask)
        chosen = choose(self.score(words)[..., 0], allowed, self.temperature, training=self.training)
        return torch.bmm(chosen[:, None].to(words.dtype), words), chosen.detach().argmax(1)

    def _dropped(self, semantic: Tensor, rate: float) -> Tensor:
        if not self.training or not rate:
            return torch.zeros_like(semantic)
        return semantic & (torch.rand(semantic.shape, device=semantic.device) < rate)


def distribute(visual: Tensor, subjects: Tensor, way: Distributor) -> tuple[Tensor, Tensor]:
    """The subject distributor: the pixels' subject token (E, 1, C) and those of the expressions (E, N, C), in agreement
    again. "mean": each becomes the mean of all N + 1; "visual": those of the expressions become the pixels'. The
    paper's formula is not in the text we have."""
    shared = torch.cat([visual, subjects], 1).mean(1, keepdim=True) if way == "mean" else visual
    return shared, shared.expand_as(subjects)
