"""Eq. 4 and its alternative by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refseg.errors import ConfigError
from refseg.models.vipa.supervision import RELEVANCE_LOSSES, ScaleBias, Supervision, relevant_pixels, threshold_loss

SCORES = torch.tensor([[0.5, -0.25, 0.75, -1.0]])
RELEVANT = torch.tensor([[True, True, False, False]])


def test_relevant_pixels_by_hand() -> None:
    """A 4 x 4 mask in cells of 2 x 2 pixels, of which 1, 0, 2 and 4 are mask."""
    mask = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]], dtype=torch.bool)
    assert relevant_pixels(mask, (2, 2), 0.0).int().tolist() == [[[1, 0], [1, 1]]]
    assert relevant_pixels(mask, (2, 2), 0.5).int().tolist() == [[[0, 0], [0, 1]]]


def test_contrastive_loss_is_eq_4() -> None:
    """-log s(0.5), -log s(-0.25), -log(1 - s(0.75)), -log(1 - s(-1)); log s(x) = -softplus(-x)."""
    wanted = F.softplus(torch.tensor([-0.5, 0.25, 0.75, -1.0]))
    contrastive = RELEVANCE_LOSSES["contrastive"]
    torch.testing.assert_close(contrastive(SCORES, RELEVANT), wanted.mean())
    valid = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(contrastive(SCORES, RELEVANT, valid), wanted[:3].mean())


def test_threshold_loss_by_hand() -> None:
    """0.5 and -1 have the right sign. -0.25 and 0.75 have the wrong one, and lose their distance from 0."""
    assert threshold_loss(SCORES, RELEVANT).item() == pytest.approx(1.0 / 4)
    valid = torch.tensor([[True, True, False, False]])
    assert threshold_loss(SCORES, RELEVANT, valid).item() == pytest.approx(0.25 / 2)
    assert threshold_loss(SCORES, RELEVANT, torch.zeros_like(valid)).item() == 0.0


def test_scale_and_bias() -> None:
    """10 x 0.5 - 1 = 4, and both are learned."""
    module = ScaleBias()
    logits = module(torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(logits, torch.tensor([4.0, 9.0]))
    logits.sum().backward()
    assert module.bias.grad == 2 and module.log_scale.grad == pytest.approx(15.0)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"scores 'none'\. Valid values: contrastive, direct, None"):
        Supervision(scores="none")
    with pytest.raises(ConfigError, match="relevant_share"):
        Supervision(relevant_share=1.0)
    with pytest.raises(ConfigError, match="scale_bias is for"):
        Supervision(scores="direct", scale_bias=True)
