"""Diversity and head nouns of Latent-VG, on examples computed by hand."""

from __future__ import annotations

import pytest
import torch

from refseg.analysis.latent_vg import across_texts, closeness, head_nouns


def test_closeness() -> None:
    """One latent is along x and one along the diagonal: cos 45 degrees to each other, 0 and 0.707 to a text along y."""
    latents = torch.tensor([[[2.0, 0.0], [3.0, 3.0]]])
    cosines = closeness(torch.tensor([[0.0, 5.0]]), latents)
    torch.testing.assert_close(cosines.among, torch.tensor([0.5**0.5]))
    torch.testing.assert_close(cosines.to_text, torch.tensor([0.5**0.5 / 2]))
    one = closeness(torch.tensor([[0.0, 5.0]]), latents[:, :1])
    assert one.among.isnan().all() and one.to_text.item() == 0


def test_across_texts() -> None:
    """First latents along x, x and y have cosines 1, 0, 0. The second ones have -1, 0, 0."""
    first = torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert across_texts(torch.stack([first, second], 1)) == pytest.approx((1 / 3 - 1 / 3) / 2)
    assert across_texts(first[:, None]) == pytest.approx(1 / 3)


def test_head_nouns_of_the_referents() -> None:
    """The first three words of "the red circle left of the star" describe the referent."""
    text, tags = "The red circle left of the star", {"words": {"7": [0, 1, 2]}, "anchor_words": {"8": [5, 6]}}
    nouns = {"circle", "star"}
    assert head_nouns(text, tags, nouns) == {2}
    assert head_nouns("both circles, and stars", {"words": {"1": [0, 1], "2": [3]}}, {"circles", "stars"}) == {1, 3}
    assert head_nouns(text, {}, nouns) == set()
