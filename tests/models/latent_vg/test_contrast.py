"""Contrastive losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.errors import ConfigError
from refseg.models.latent_vg.contrast import (
    Contrast,
    arcface_margin,
    contrast_loss,
    cosines,
    positive_margin,
    same_target,
)

SIMILARITY = torch.tensor([[0.5, 0.1], [-0.2, 0.9]])[..., None]  # two texts, one latent expression each
RELATED = torch.eye(2, dtype=torch.bool)


def loss(kind: str, **settings: float) -> float:
    return contrast_loss(SIMILARITY, RELATED, Contrast(loss=kind, temperature=1.0, **settings)).item()


def test_infonce_by_hand() -> None:
    """-log of e^0.5 / (e^0.5 + e^0.1) and of e^0.9 / (e^0.9 + e^-0.2)."""
    wanted = (math.log1p(math.exp(0.1 - 0.5)) + math.log1p(math.exp(-0.2 - 0.9))) / 2
    assert loss("infonce") == pytest.approx(wanted)


def test_positive_margin_by_hand() -> None:
    """With a margin of 0.2 the positives count as 0.7 and as 1, the maximum."""
    wanted = (math.log1p(math.exp(0.1 - 0.7)) + math.log1p(math.exp(-0.2 - 1.0))) / 2
    assert loss("positive_margin", margin=0.2) == pytest.approx(wanted)
    assert loss("positive_margin", margin=0.0) == pytest.approx(loss("infonce"))


def test_arcface_by_hand() -> None:
    """The angle of 0.5 is pi / 3. A margin of pi / 6 makes it pi / 2, with a cosine of 0."""
    angle = math.acos(0.9) + math.pi / 6
    wanted = (math.log1p(math.exp(0.1 - 0.0)) + math.log1p(math.exp(-0.2 - math.cos(angle)))) / 2
    assert loss("arcface", margin=math.pi / 6) == pytest.approx(wanted)


def test_triplet_by_hand() -> None:
    """0.1 - 0.5 + 0.5 = 0.1, and -0.2 - 0.9 + 0.5 < 0."""
    assert loss("triplet", margin=0.5) == pytest.approx(0.05)


def test_temperature_divides() -> None:
    found = contrast_loss(SIMILARITY, RELATED, Contrast(loss="infonce", temperature=0.1)).item()
    wanted = (math.log1p(math.exp(-4.0)) + math.log1p(math.exp(-11.0))) / 2
    assert found == pytest.approx(wanted, rel=1e-3)


def test_positives_within_the_margin_have_no_gradient() -> None:
    """At 0.9 with a margin of 0.2 the positive has no gradient; at 0.5 it has one, and negatives always have."""
    similarity = SIMILARITY.clone().requires_grad_()
    contrast_loss(similarity, RELATED, Contrast(temperature=1.0)).backward()
    gradient = similarity.grad[..., 0]
    assert gradient[1, 1] == 0 and gradient[0, 0] < 0 and gradient[0, 1] > 0 and gradient[1, 0] > 0
    assert positive_margin(torch.tensor([0.5, 0.8, 0.95]), 0.2).tolist() == pytest.approx([0.7, 1.0, 1.0])


def test_arcface_margin_decreases_monotonically() -> None:
    """Also where the angle would pass pi, and its gradient is finite at the ends."""
    positive = torch.linspace(-1, 1, 201).requires_grad_()
    values = arcface_margin(positive, 0.5)
    assert (values.diff() > 0).all() and (values <= positive + 1e-6).all()
    values.sum().backward()
    assert torch.isfinite(positive.grad).all()


@pytest.mark.parametrize("kind", ["positive_margin", "infonce", "triplet", "arcface"])
def test_related_expressions_are_not_negatives(kind: str) -> None:
    """If all are related there is no negative: the loss is 0, with finite gradients. The cosine of one such pair has no
    effect."""
    settings = Contrast(loss=kind)
    similarity = SIMILARITY.clone().requires_grad_()
    found = contrast_loss(similarity, torch.ones(2, 2, dtype=torch.bool), settings)
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    found.backward()
    assert torch.isfinite(similarity.grad).all()
    related = torch.tensor([[True, True], [False, True]])
    other = SIMILARITY.clone()
    other[0, 1] = 0.99
    assert contrast_loss(other, related, settings) == contrast_loss(SIMILARITY, related, settings)


def test_single_expression_has_no_negatives() -> None:
    one = contrast_loss(torch.tensor([[[0.3, 0.1]]]), torch.ones(1, 1, dtype=torch.bool), Contrast())
    assert one.item() == pytest.approx(0.0, abs=1e-6)


def test_cosines_of_texts_with_latent_expressions() -> None:
    texts, latents = torch.randn(3, 5), torch.randn(3, 2, 5)
    found = cosines(texts, latents)
    assert found.shape == (3, 3, 2)
    assert found[0, 2, 1].item() == pytest.approx(torch.cosine_similarity(texts[0], latents[2, 1], 0).item())


def test_same_target_needs_the_same_image_and_referents() -> None:
    """Two images have four phrases each and different numbers of instances. Phrases 0 and 2 refer to the first
    instance, 1 to the second, and 3 to nothing."""
    batch = dummy_batch(shape=(32, 32), num_images=2, expressions_per_image=4)["batch"]
    referents = [*batch.referents[:4], *(torch.cat([r, torch.tensor([False])]) for r in batch.referents[4:])]
    found = same_target(replace(batch, referents=referents))
    block = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(found, torch.block_diag(block, block).bool())


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"loss 'nce'\. Valid values: positive_margin, infonce, triplet, arcface"):
        Contrast(loss="nce")
    with pytest.raises(ConfigError, match="margin must be in"):
        Contrast(margin=-0.1)
    with pytest.raises(ConfigError, match="must be positive"):
        Contrast(temperature=0.0)
