"""Retrieved regions by hand."""

from __future__ import annotations

import pytest
import torch

from refseg.analysis.retrieved_regions import retrieved_shares


def test_shares_by_hand() -> None:
    """Four pixels, the first two are the target. [CLS] takes pixels 0 and 2: half of the target. One word takes both of
    the target, of which [CLS] has one; another takes what [CLS] takes; the last token is none. On average the words
    find 0.75, and (0.5 + 1) / 2 of their pixels are [CLS]'s. By chance, two of four pixels find half."""
    retrieved = torch.tensor([[[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[True, True, False, False]])
    found = retrieved_shares(retrieved, relevant, torch.ones(1, 4, dtype=torch.bool))
    assert [value.item() for value in found] == pytest.approx([0.5, 0.75, 0.5, 0.75])


def test_missing_targets_have_no_share() -> None:
    """Without a target nothing can be found; without [CLS] as a cue nothing is like it; of three pixels with one of
    padding, one is half."""
    retrieved = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    valid = torch.tensor([[True, True, False]] * 2)
    by_first, by_words, chance, alike = retrieved_shares(retrieved, relevant, valid)
    assert by_first.isnan().all() and by_words[0].isnan() and by_words[1] == 1
    assert chance.tolist() == [0.5, 0.5] and alike[0] == 0 and alike[1].isnan()
