"""Attention spread and retrieved regions of VIPA, on examples computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from models.referring_checks import padded_images, prepared, tiny_model
from refseg.analysis.vipa import attention_spread, recorded_spread, relative_entropy, retrieved_shares


def test_relative_entropy() -> None:
    """Equal weights: 1. A single weight: 0. Two equal ones of four: ln 2 / ln 4. One valid place, no weight: NaN."""
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1]] * 3 + [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    entropy = relative_entropy(weights, valid)
    torch.testing.assert_close(entropy[:4], torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert entropy[4:].isnan().all()


def test_attention_spread() -> None:
    """Two pixels, two tokens, one head. If each pixel attends to a different token, both spreads are 0. If both
    attend to both tokens equally, they are 1. The third pixel and token are padding and do not count."""
    attention = torch.full((2, 1, 3, 3), 0.3)
    attention[0, 0, :2, :2] = torch.eye(2)
    attention[1, 0, :2, :2] = 0.5
    valid = torch.tensor([[True, True, False]] * 2)
    over_tokens, over_pixels = attention_spread(attention, valid, valid)
    assert over_tokens.tolist() == pytest.approx([0, 1]) and over_pixels.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("padded", [False, True])
def test_recorded_spread(padded: bool) -> None:
    """Four stages of the last run, six expressions, numbers between 0 and 1. Nothing is recorded afterwards."""
    model = tiny_model("vipa_swinb").eval()
    batch = prepared(model)
    batch = padded_images(batch, 64, 48) if padded else batch
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        model(batch)
        model(batch)
    assert len(spreads) == 4
    for over_tokens, over_pixels in spreads:
        assert over_tokens.shape == over_pixels.shape == (6,)
        assert over_tokens.min() > 0 and over_tokens.max() <= 1 + 1e-5
        assert over_pixels.min() > 0 and over_pixels.max() <= 1 + 1e-5
    spreads.clear()
    with torch.no_grad():
        model(batch)
    assert spreads == []


def test_zero_queries_attend_uniformly() -> None:
    """With zero queries all tokens have the same weight, so the relative entropy is 1."""
    model = tiny_model("vipa_swinb").eval()
    for layer in model.decoder.attn_layers:
        torch.nn.init.zeros_(layer.attn.query.weight)
        torch.nn.init.zeros_(layer.attn.query.bias)
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        model(prepared(model))
    for spread in spreads:
        for value in torch.cat(list(spread)).tolist():
            assert math.isclose(value, 1.0, abs_tol=1e-5)


def test_retrieved_shares() -> None:
    """Four pixels, of which the first two are the target. [CLS] retrieves pixels 0 and 2, half of the target. The first
    word retrieves the whole target, the second the same pixels as [CLS], and the last token is no cue. The words find
    0.75 of the target on average and share (0.5 + 1) / 2 of their pixels with [CLS]. Chance is two pixels of four."""
    retrieved = torch.tensor([[[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[True, True, False, False]])
    shares = retrieved_shares(retrieved, relevant, torch.ones(1, 4, dtype=torch.bool))
    assert [value.item() for value in shares] == pytest.approx([0.5, 0.75, 0.5, 0.75])


def test_shares_without_target_or_cue() -> None:
    """Shares are NaN without a target, and `alike` is NaN if [CLS] is no cue. Padding does not count: one pixel of two
    valid ones is half."""
    retrieved = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    valid = torch.tensor([[True, True, False]] * 2)
    by_first, by_words, chance, alike = retrieved_shares(retrieved, relevant, valid)
    assert by_first.isnan().all() and by_words[0].isnan() and by_words[1] == 1
    assert chance.tolist() == [0.5, 0.5] and alike[0] == 0 and alike[1].isnan()
