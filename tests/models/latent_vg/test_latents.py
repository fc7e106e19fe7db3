"""Latent expressions and their subject by hand: what is chosen, what is dropped, and where gradients go."""

from __future__ import annotations

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.latent_vg.latents import LatentExpressions, choose, distribute, semantic_tokens

E, L, C = 3, 6, 8
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)


def latents(**settings: object) -> LatentExpressions:
    torch.manual_seed(0)
    return LatentExpressions(**(dict(embed_dim=C, lengths=(2, 3), drop_rates=(0.5, 0.0), num_words=8) | settings))


def words() -> torch.Tensor:
    return torch.randn(E, L, C, generator=torch.Generator().manual_seed(1))


def test_semantic_tokens_by_hand() -> None:
    """Without the first and the last token of each text; the third text has no others. One token is both."""
    assert semantic_tokens(MASK).int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert not semantic_tokens(torch.tensor([[True, False]])).any()


# The subject ----------------------------------------------------------------------------------------------------------


def test_choose_returns_one_token() -> None:
    """In training and at test time one of those that are allowed; at test time the best of them."""
    scores = torch.tensor([[5.0, 1, 2, 0, -1, 7]]).expand(200, -1)
    allowed = torch.tensor([[False, True, True, True, False, False]]).expand(200, -1)
    best = choose(scores, allowed, 1.0, training=False)
    assert best[0].tolist() == [0, 0, 1, 0, 0, 0]
    torch.manual_seed(0)
    drawn = choose(scores, allowed, 1.0, training=True)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and drawn.sum(1).eq(1).all()
    shares = drawn.mean(0)  # softmax(1, 2, 0) = 0.24, 0.67, 0.09
    torch.testing.assert_close(shares, torch.tensor([0, 0.2447, 0.6652, 0.0900, 0, 0]), atol=0.1, rtol=0)


def test_straight_through_gradient_of_the_choice() -> None:
    """The gradient of sum(w y) is that of sum(w softmax((scores + noise) / tau)), with the same noise."""
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    allowed = torch.tensor([True, True, True, True, False]).expand(4, -1)
    weight = torch.arange(20.0).view(4, 5)
    torch.manual_seed(3)
    (got,) = torch.autograd.grad((weight * choose(scores, allowed, 0.7, training=True)).sum(), scores)
    torch.manual_seed(3)
    noise = -torch.empty(4, 5).exponential_().log()
    soft = ((scores + noise).masked_fill(~allowed, -1e30) / 0.7).softmax(1)
    (wanted,) = torch.autograd.grad((weight * soft).sum(), scores)
    torch.testing.assert_close(got, wanted)
    assert got[:, :4].abs().min() > 0 and not got[:, 4].any()


def test_the_subject_is_a_token_of_the_text() -> None:
    """Its embedding, unchanged; of texts with words one of those, of the last text one of its two tokens."""
    for training in (True, False):
        module, x = latents().train(training), words()
        for seed in range(10):
            torch.manual_seed(seed)
            found = module(x, MASK)
            assert found.subject.shape == (E, 1, C)
            picked = x[torch.arange(E), found.subject_token]
            torch.testing.assert_close(found.subject[:, 0], picked)
            token = found.subject_token.tolist()
            assert 1 <= token[0] <= 4 and 1 <= token[1] <= 2 and token[2] <= 1


# Attributes -----------------------------------------------------------------------------------------------------------


def test_attributes_are_position_maps_of_words() -> None:
    """At test time nothing is dropped: phi_i times the words, without padding, for both expressions."""
    module, x = latents().eval(), words()
    found = module(x, MASK).attributes
    clean = x * MASK[..., None]
    maps = torch.cat([position_map.weight for position_map in module.position_maps])[:, :L]  # (2 + 3, L)
    torch.testing.assert_close(found, torch.einsum("kl,elc->ekc", maps, clean))


def test_padding_has_no_effect() -> None:
    module, x = latents().eval(), words()
    found, other = module(x, MASK), module(x.masked_fill(~MASK[..., None], 9.0), MASK)
    torch.testing.assert_close(found.attributes, other.attributes)
    more = module(torch.cat([x, torch.ones(E, 2, C)], 1), torch.nn.functional.pad(MASK, (0, 2)))
    torch.testing.assert_close(more.attributes, found.attributes)
    assert torch.equal(more.subject_token, found.subject_token)


def test_words_are_dropped_in_training_at_each_rate() -> None:
    """Rates 0.5 and 0: the second expression never loses anything. First and last token stay: of the text without words
    nothing is ever dropped. With maps that count tokens, the first loses half of four words on average."""
    module = latents(lengths=(1, 1)).train()
    for position_map in module.position_maps:
        torch.nn.init.ones_(position_map.weight)
    ones, counts = torch.ones(E, L, C), []
    for seed in range(200):
        torch.manual_seed(seed)
        counts.append(module(ones, MASK).attributes[..., 0])
    first, second = torch.stack(counts).unbind(2)
    assert second.unique(dim=0).tolist() == [[6, 4, 2]]
    assert first[:, 2].unique().tolist() == [2] and first[:, 0].min() >= 2
    assert first[:, 0].mean().item() == pytest.approx(4.0, abs=0.3)


def test_evaluation_uses_no_randomness() -> None:
    module, x = latents().eval(), words()
    state = torch.get_rng_state()
    one, two = module(x, MASK), module(x, MASK)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# The distributor ------------------------------------------------------------------------------------------------------


def test_distribute_by_hand() -> None:
    """Subjects 3 of the pixels, 0 and 9 of two expressions: all become their mean, 4; or those of expressions 3."""
    visual, subjects = torch.full((1, 1, 2), 3.0), torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])
    mean = distribute(visual, subjects, "mean")
    assert mean[0].unique().tolist() == [4.0] and mean[1].unique().tolist() == [4.0] and mean[1].shape == (1, 2, 2)
    own = distribute(visual, subjects, "visual")
    assert own[0].unique().tolist() == [3.0] and own[1].unique().tolist() == [3.0]


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match="same number of entries"):
        latents(lengths=(2,))
    with pytest.raises(ConfigError, match="same number of entries"):
        latents(lengths=(), drop_rates=())
    with pytest.raises(ConfigError, match="drop_rates must be in"):
        latents(drop_rates=(1.0, 0.0))
    with pytest.raises(ConfigError, match="temperature must be positive"):
        latents(temperature=0.0)
    with pytest.raises(ConfigError, match=r"6 tokens, more than latents\.num_words=5"):
        latents(num_words=5)(words(), MASK)
