"""Spread of attention by hand."""

from __future__ import annotations

import math

import pytest
import torch

from models.referring_checks import padded_images, prepared, tiny_model
from refseg.analysis.attention_entropy import attention_spread, recorded_spread, relative_entropy


def test_relative_entropy_by_hand() -> None:
    """Equal weights: 1. One of them: 0. Two of four alike: ln 2 / ln 4. Both of two valid: 1. One valid, none: NaN."""
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1]] * 3 + [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    found = relative_entropy(weights, valid)
    torch.testing.assert_close(found[:4], torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert found[4:].isnan().all()


def test_spread_by_hand() -> None:
    """Two pixels and two tokens, one head. Each pixel reads a token of its own: both spreads are 0. Both read both
    alike: 1. A third pixel and token are padding, whatever they say."""
    attention = torch.full((2, 1, 3, 3), 0.3)
    attention[0, 0, :2, :2] = torch.eye(2)
    attention[1, 0, :2, :2] = 0.5
    valid = torch.tensor([[True, True, False]] * 2)
    over_tokens, over_pixels = attention_spread(attention, valid, valid)
    assert over_tokens.tolist() == pytest.approx([0, 1]) and over_pixels.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("padded", [False, True])
def test_spread_of_a_decoder_is_recorded(padded: bool) -> None:
    """Four stages of the last run, six expressions, numbers between 0 and 1; afterwards nothing is recorded."""
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
    """Without a query all tokens weigh the same for all pixels: 1, and the mean entropy is ln L / ln L."""
    model = tiny_model("vipa_swinb").eval()
    for layer in model.decoder.attn_layers:
        torch.nn.init.zeros_(layer.attn.query.weight)
        torch.nn.init.zeros_(layer.attn.query.bias)
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        model(prepared(model))
    for spread in spreads:
        for value in torch.cat(list(spread)).tolist():
            assert math.isclose(value, 1.0, abs_tol=1e-5)
