"""Which tokens of an expression are cues for retrieval (VIPA, section III-B; Tables VI b and IX).

Letters: E expressions, U distinct texts, L tokens.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refseg.errors import ConfigError
from refseg.structures import Batch


@dataclass(frozen=True, slots=True)
class Cues:
    """`global_cue`: the first token, which stands for the whole expression ([CLS]). `local_cues`: the others, the end
    token included. Without either nothing is retrieved, and all pixels are used. `without_words`: words that are no
    cues, such as articles; the text encoder and the fusion still read them."""

    global_cue: bool = True
    local_cues: bool = True
    without_words: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.without_words, str):
            raise ConfigError(f"cues.without_words is a list of words, not {self.without_words!r}")

    @property
    def any(self) -> bool:
        return self.global_cue or self.local_cues


def cue_mask(batch: Batch, word_mask: Tensor, cues: Cues) -> Tensor:
    """(E, L) bool: the tokens of word_mask (E, L) that are cues."""
    first = torch.arange(word_mask.shape[1], device=word_mask.device) == 0
    mask = word_mask & ((first & cues.global_cue) | (~first & cues.local_cues))
    return mask & ~tokens_of_words(batch, cues.without_words) if cues.without_words else mask


def tokens_of_words(batch: Batch, words: Sequence[str]) -> Tensor:
    """(E, L) bool: tokens that are part of one of these words, whatever its case and the punctuation around it."""
    if batch.tokens.word_of is None:
        raise ValueError("tokens.word_of is needed to find words among the tokens")
    wanted = {word.lower() for word in words}
    texts = (text for meta in batch.metas for text in meta.texts)
    rows = batch.tokens.word_of.index_select(0, batch.tokens.text_of).tolist()
    found = []
    for text, row in zip(texts, rows, strict=True):
        chosen = [word.strip(string.punctuation).lower() in wanted for word in text.split()]
        found.append([word >= 0 and chosen[word] for word in row])
    return torch.tensor(found, device=batch.tokens.ids.device)
