"""Latent expressions by hand: their layout, their subject, dropped words, and gradients."""

from __future__ import annotations

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.latent_vg.latents import LatentExpressions, TokenLayout, distribute, semantic_tokens

E, L, C = 3, 6, 8
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)


def latents(**settings: object) -> LatentExpressions:
    """Two latent expressions of two and three attributes."""
    torch.manual_seed(0)
    return LatentExpressions(**(dict(embed_dim=C, lengths=(2, 3), drop_rates=(0.5, 0.0), num_words=8) | settings))


def words() -> torch.Tensor:
    return torch.randn(E, L, C, generator=torch.Generator().manual_seed(1))


def test_semantic_tokens_by_hand() -> None:
    """All but the first and the last token of each text. The third text has no others. One token is both."""
    assert semantic_tokens(MASK).int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert not semantic_tokens(torch.tensor([[True, False]])).any()


# The layout -----------------------------------------------------------------------------------------------------------


def test_layout_by_hand() -> None:
    """Two words, two latent expressions of one and two attributes, and an empty token: [w w | c c | s s | a b b | e]. A
    class token has the position of the first token of a text, a subject that of the second."""
    layout = TokenLayout((1, 2), empty_token=True)
    tokens = layout.split(torch.arange(10.0)[None, :, None])
    assert [x.flatten().tolist() for x in tokens] == [[0, 1], [2, 3], [4, 5], [6, 7, 8], [9]]
    assert layout.position_of.tolist() == [0, 0, 1, 1, 2, 2, 3]
    of = [0, 0, 1, 2, 1, 2, 1, 2, 2, 0]
    valid = torch.tensor([[True, False, True, *[True] * 9]])  # a class token, a padded patch; the first word follows
    wanted = [[True, False, *(i == j for j in of)] for i in of]
    assert layout.attn_mask(valid, 2)[0].tolist() == wanted


def test_layout_without_latent_expressions() -> None:
    words, *others = TokenLayout((), empty_token=False).split(torch.zeros(3, 4, 2))
    assert words.shape == (3, 4, 2) and all(x.shape == (3, 0, 2) for x in others)


def test_each_latent_expression_has_its_own_class_token() -> None:
    module, x = latents().eval(), words()
    tokens = module(x, MASK).tokens
    assert tokens.shape == (E, 2 + 2 + 2 + 3, C) and not torch.equal(tokens[:, 0], tokens[:, 1])
    assert torch.equal(tokens[:, :2], module.class_tokens.expand(E, -1, -1))
    assert module.class_tokens.std().item() == pytest.approx(1.0, abs=0.3)
    assert latents(class_token_std=0.02).class_tokens.abs().max() < 0.1
    assert torch.equal(tokens[:, 2], tokens[:, 3]) and torch.equal(tokens[:, 2:3], module(x, MASK).subject)


# The subject ----------------------------------------------------------------------------------------------------------


def scored(scores: list[float]) -> tuple[LatentExpressions, torch.Tensor]:
    """Latent expressions whose scores are the words' first channel, and 400 equal texts of such words."""
    module = latents(score_norm=False)
    module.score.weight.data = torch.eye(C)[:1]
    x = torch.zeros(400, len(scores), C)
    x[..., 0] = torch.tensor(scores)
    return module, x


def test_the_subject_is_drawn_by_its_probability() -> None:
    """Scores 1, 2 and 0 between the ends have softmax 0.24, 0.67 and 0.09; at test time the best is taken."""
    module, x = scored([5.0, 1, 2, 0, 7])
    mask, probs = torch.ones(x.shape[:2], dtype=torch.bool), torch.tensor([0.2447, 0.6652, 0.0900])
    best = module.eval()(x, mask)
    assert best.subject_token.unique().tolist() == [2]
    torch.testing.assert_close(best.subject_prob, probs[1].expand(400), atol=1e-4, rtol=0)
    torch.manual_seed(0)
    drawn = module.train()(x, mask)
    shares = torch.bincount(drawn.subject_token, minlength=5) / 400
    torch.testing.assert_close(shares, torch.tensor([0, 0.2447, 0.6652, 0.0900, 0]), atol=0.08, rtol=0)
    torch.testing.assert_close(drawn.subject_prob, probs[drawn.subject_token - 1], atol=1e-4, rtol=0)


def test_straight_through_gradient_of_the_choice() -> None:
    """The gradient on the scores is that of the softmax of (scores + noise) / tau, with the same noise."""
    module, x = latents(temperature=0.7, score_norm=False, drop_rates=(0.0, 0.0)).train(), words()[:1]
    direction = torch.randn(C, generator=torch.Generator().manual_seed(2))
    weight = module.score.weight
    torch.manual_seed(3)
    (got,) = torch.autograd.grad((module(x, MASK[:1]).subject @ direction).sum(), weight)
    torch.manual_seed(3)
    noise = -torch.empty(1, L).exponential_().log()
    soft = ((x @ weight[0] + noise)[:, 1:-1] / 0.7).softmax(1)
    (wanted,) = torch.autograd.grad((soft * (x[:, 1:-1] @ direction)).sum(), weight)
    torch.testing.assert_close(got, wanted)
    assert got.abs().max() > 0


def test_the_norm_makes_scores_independent_of_the_size_of_embeddings() -> None:
    """Embeddings of width 0.02, as BEiT-3's first ones: without the norm the choice starts uniform, 1 of 4 words."""
    x = 0.02 * torch.randn(64, L, C, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(64, L, dtype=torch.bool)
    with_norm, without = (latents(score_norm=on).eval()(x, mask).subject_prob.mean().item() for on in (True, False))
    assert without == pytest.approx(0.25, abs=0.01) and with_norm > 0.35


def test_the_subject_is_a_token_of_the_text() -> None:
    """Its embedding is unchanged. In the last text, without words, it is one of the two end tokens."""
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
    """At test time nothing is dropped: attributes are phi_i times the words, without padding."""
    module, x = latents().eval(), words()
    found = module(x, MASK).tokens[:, 4:]
    clean = x * MASK[..., None]
    maps = torch.cat([position_map.weight for position_map in module.position_maps])[:, :L]  # (2 + 3, L)
    torch.testing.assert_close(found, torch.einsum("kl,elc->ekc", maps, clean))


def test_padding_has_no_effect() -> None:
    module, x = latents().eval(), words()
    found, other = module(x, MASK), module(x.masked_fill(~MASK[..., None], 9.0), MASK)
    torch.testing.assert_close(found.tokens, other.tokens)
    more = module(torch.cat([x, torch.ones(E, 2, C)], 1), torch.nn.functional.pad(MASK, (0, 2)))
    torch.testing.assert_close(more.tokens, found.tokens)
    assert torch.equal(more.subject_token, found.subject_token)


def test_words_are_dropped_in_training_at_each_rate() -> None:
    """Rates are 0.5 and 0, and the maps count tokens. The second expression never loses any. The first loses half of
    four words on average, and never the first and last token."""
    module = latents(lengths=(1, 1)).train()
    for position_map in module.position_maps:
        torch.nn.init.ones_(position_map.weight)
    ones, counts = torch.ones(E, L, C), []
    for seed in range(200):
        torch.manual_seed(seed)
        counts.append(module(ones, MASK).tokens[:, 4:, 0])
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
    """The pixels' subject is 3, those of two expressions are 0 and 9. All become the mean, 4, or all become 3."""
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
