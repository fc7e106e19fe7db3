"""Cues, the tokens that retrieve, and the pixels that they retrieve (VIPA, section III-B, eqs. 1-3; Tables VI b and
IX).

Letters: B rows of pixels (images, or expressions if the encoder fuses words), E expressions, U distinct texts, L
tokens, P pixels (the paper's N), C channels of pixels, D of words, J of the joint space.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.layers import Groups
from refseg.structures import Batch


@dataclass(frozen=True, slots=True)
class Cues:
    """Settings of the tokens that retrieve pixels. Without any cue, all pixels are used.

    Args:
        global_cue: The first token ([CLS]), which represents the whole expression.
        local_cues: All other tokens, including the end token.
        without_words: Words that are not cues, such as articles. Text encoder and fusion still read them.
    """

    global_cue: bool = True
    local_cues: bool = True
    without_words: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.without_words, str):
            raise ConfigError(f"cues.without_words must be a list of words, not {self.without_words!r}.")

    @property
    def any(self) -> bool:
        return self.global_cue or self.local_cues


def cue_mask(batch: Batch, word_mask: Tensor, cues: Cues) -> Tensor:
    """Return the tokens of word_mask (E, L) that are cues, (E, L) bool."""
    first = torch.arange(word_mask.shape[1], device=word_mask.device) == 0
    mask = word_mask & ((first & cues.global_cue) | (~first & cues.local_cues))
    return mask & ~tokens_of_words(batch, cues.without_words) if cues.without_words else mask


def tokens_of_words(batch: Batch, words: Sequence[str]) -> Tensor:
    """Return the tokens of any of these words, ignoring case and surrounding punctuation: (E, L) bool."""
    if batch.tokens.word_of is None:
        raise ValueError("cues.without_words needs tokens.word_of, which LoadText provides.")
    wanted = {word.lower() for word in words}
    texts = (text for meta in batch.metas for text in meta.texts)
    rows = batch.tokens.word_of.index_select(0, batch.tokens.text_of).tolist()
    mask = []
    for text, row in zip(texts, rows, strict=True):
        chosen = [word.strip(string.punctuation).lower() in wanted for word in text.split()]
        mask.append([word >= 0 and chosen[word] for word in row])
    return torch.tensor(mask, device=batch.tokens.ids.device)


def top_share(scores: Tensor, ratio: float, valid: Tensor | None = None) -> Tensor:
    """Select the valid pixels with the highest scores in each row: (E, L, P) bool.

    Args:
        scores: (E, L, P).
        ratio: Share of the valid pixels to select, rounded, at least one pixel if any is valid.
        valid: (E, P), False on padding.
    """
    most = max(1, round(ratio * scores.shape[-1]))
    if valid is None:
        chosen = torch.ones_like(scores[..., :most], dtype=torch.bool)
    else:
        scores = scores.masked_fill(~valid[:, None], -math.inf)
        number = valid.sum(-1).double()
        count = (number * ratio).round().clamp_min(1).minimum(number)[:, None, None]
        chosen = (torch.arange(most, device=scores.device) < count).expand(*scores.shape[:-1], -1)  # (E, L, most)
    order = scores.topk(most, -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, chosen)


def gumbel_like(scores: Tensor) -> Tensor:
    """Draw standard Gumbel noise from PyTorch's global generator."""
    return -torch.empty_like(scores).exponential_().clamp_min(torch.finfo(scores.dtype).tiny).log()


def straight_through(
    scores: Tensor, temperature: Tensor, noise: Tensor, ratio: float, valid: Tensor | None = None
) -> Tensor:
    """Return the top share of perturbed scores (E, L, P) as floats 0 and 1 (eqs. 2 and 3).

    The gradient is that of softmax((scores + noise) / temperature) over the valid pixels (E, P).
    """
    logits = (scores + noise) / temperature
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None], torch.finfo(logits.dtype).min)
    soft = logits.softmax(-1)
    return top_share(logits.detach(), ratio, valid).to(soft.dtype) + (soft - soft.detach())


class TokenRetrieval(BaseModule):
    """Score tokens and pixels by cosines in a joint space, and select the pixels that each token retrieves.

    tau is learned as its logarithm, so it stays positive. The noise has a standard deviation of 1.28, which is large
    compared with cosines.

    Args: See `VisualExpressionGenerator`.
    """

    def __init__(
        self, *, pixel_dim: int, word_dim: int, joint_dim: int, ratio: float, temperature: float, noise: float
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ConfigError(f"generator.ratio must be in (0, 1], not {ratio}.")
        if temperature <= 0:
            raise ConfigError(f"generator.temperature must be positive, not {temperature}.")
        if noise < 0:
            raise ConfigError(f"generator.noise must be at least 0, not {noise}.")
        self.ratio, self.noise = ratio, noise
        self.project_pixels = nn.Linear(pixel_dim, joint_dim)
        self.project_words = nn.Linear(word_dim, joint_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def embed(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels (B, P, J) and words (E, L, J) in the joint space, with length 1, in fp32 at least."""
        embeddings = (self.project_pixels(pixels), self.project_words(words))
        return tuple(F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1) for x in embeddings)

    def scores(self, pixels: Tensor, words: Tensor, groups: Groups) -> Tensor:
        """Return cosines (E, L, P) of pixels (B, P, C) and words (E, L, D) (eq. 1), in fp32 at least to rank them."""
        pixels, words = self.embed(pixels, words)
        with torch.autocast(pixels.device.type, enabled=False):
            return groups.dot(words, pixels.transpose(1, 2))

    def forward(self, scores: Tensor, valid: Tensor | None) -> Tensor:
        """Return the mask M (E, L, P) of 0 and 1 from scores (E, L, P) and valid (E, P).

        Noise and tau are used in training only. In evaluation M depends on the scores alone.
        """
        if not self.training:
            return top_share(scores, self.ratio, valid).to(scores.dtype)
        noise = self.noise * gumbel_like(scores)
        return straight_through(scores, self.log_temperature.exp(), noise, self.ratio, valid)
