"""Which tokens retrieve."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refseg.apis.dummy import dummy_batch
from refseg.errors import ConfigError
from refseg.models.vipa.cues import Cues, cue_mask
from refseg.structures import Batch

ARTICLES = ("a", "an", "the")


def batch_of(*texts: str, word_of: list[list[int]]) -> Batch:
    batch = dummy_batch(shape=(32, 32), expressions_per_image=len(texts), num_words=len(word_of[0]))["batch"]
    tokens = replace(batch.tokens, word_of=torch.tensor(word_of))
    return replace(batch, metas=[replace(batch.metas[0], texts=texts)], tokens=tokens)


def test_global_and_local_cues() -> None:
    """Four tokens, the last of the second expression padding."""
    batch = batch_of("dog", "cat", word_of=[[-1, 0, 0, -1]] * 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    rows = {
        (True, True): [[1, 1, 1, 1], [1, 1, 1, 0]],
        (True, False): [[1, 0, 0, 0], [1, 0, 0, 0]],
        (False, True): [[0, 1, 1, 1], [0, 1, 1, 0]],
        (False, False): [[0, 0, 0, 0], [0, 0, 0, 0]],
    }
    for (global_cue, local_cues), wanted in rows.items():
        cues = Cues(global_cue=global_cue, local_cues=local_cues)
        assert cue_mask(batch, mask, cues).int().tolist() == wanted
        assert cues.any is (global_cue or local_cues)


def test_words_that_are_no_cues() -> None:
    """ "The" with a capital and "a" with a comma are articles, "another" is none; a word may have several tokens. Texts
    are shared by rows: both expressions of the second batch are the first text."""
    word_of = [[-1, 0, 1, 1, 2, 3, -1], [-1, 0, 1, 2, -1, -1, -1]]
    batch = batch_of("The doghouse near another", "cat, a, b", word_of=word_of)
    mask = torch.ones(2, 7, dtype=torch.bool)
    cues = Cues(without_words=ARTICLES)
    assert cue_mask(batch, mask, cues).int().tolist() == [[1, 0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1]]
    shared = batch_of("the dog", "the dog", word_of=[[-1, 0, 1]] * 2)
    tokens = replace(shared.tokens, word_of=shared.tokens.word_of[:1], text_of=torch.tensor([0, 0]))
    found = cue_mask(replace(shared, tokens=tokens), torch.ones(2, 3, dtype=torch.bool), cues)
    assert found.int().tolist() == [[1, 0, 1]] * 2


def test_one_word_is_not_a_list() -> None:
    with pytest.raises(ConfigError, match="a list of words, not 'the'"):
        Cues(without_words="the")


def test_words_must_be_known_to_be_found() -> None:
    batch = batch_of("the dog", word_of=[[-1, 0, 1]])
    batch = replace(batch, tokens=replace(batch.tokens, word_of=None))
    with pytest.raises(ValueError, match="word_of is needed"):
        cue_mask(batch, torch.ones(1, 3, dtype=torch.bool), Cues(without_words=ARTICLES))
