"""Diversity and head nouns of Latent-VG, on examples computed by hand."""

from __future__ import annotations

import pytest
import torch

from refseg.analysis.latent_vg import head_nouns, mean_cosine, mean_overlap


def test_mean_cosine() -> None:
    """Vectors along x, the diagonal and y have cosines 0.707, 0.707 and 0; a single one has none."""
    vectors = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 5.0]])
    assert mean_cosine(vectors).item() == pytest.approx(2 / 3 * 0.5**0.5)
    assert mean_cosine(vectors[None, :2])[0].item() == pytest.approx(0.5**0.5)
    assert mean_cosine(vectors[:1]).isnan()


def test_mean_overlap() -> None:
    """The first two masks share one of three pixels, the third is empty: IoU 1/3, 0, 0. Two empty ones do not count."""
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool().view(1, 4, 2, 2)
    assert mean_overlap(masks[:, :3]).item() == pytest.approx(1 / 9)
    assert mean_overlap(masks).item() == pytest.approx(1 / 3 / 5)
    assert mean_overlap(masks[:, 2:]).isnan().all()


def test_head_nouns_of_the_referents() -> None:
    """The first three words of "the red circle left of the star" describe the referent."""
    text, tags = "The red circle left of the star", {"words": {"7": [0, 1, 2]}, "anchor_words": {"8": [5, 6]}}
    nouns = {"circle", "star"}
    assert head_nouns(text, tags, nouns) == {2}
    assert head_nouns("both circles, and stars", {"words": {"1": [0, 1], "2": [3]}}, {"circles", "stars"}) == {1, 3}
    assert head_nouns(text, {}, nouns) == set()
