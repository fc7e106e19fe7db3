"""Cue tokens, and retrieval by hand: selected pixels, randomness, gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.errors import ConfigError
from refseg.models.layers import Groups
from refseg.models.vipa.retrieval import Cues, TokenRetrieval, cue_mask, gumbel_like, straight_through, top_share
from refseg.structures import Batch

ARTICLES = ("a", "an", "the")
SCORES = torch.tensor([[[0.1, 0.9, 0.5, -0.2, 0.7], [0.3, -0.1, 0.2, 0.8, 0.0]]])  # (1, 2, 5)


def retrieval(**settings: float) -> TokenRetrieval:
    torch.manual_seed(0)
    settings = dict(ratio=0.3, temperature=1.0, noise=1.0) | settings
    return TokenRetrieval(pixel_dim=6, word_dim=5, joint_dim=4, **settings)


def test_top_share_by_hand() -> None:
    """40 % of 5 pixels are 2. 10 % are half a pixel, and the minimum is 1. 100 % are all."""
    assert top_share(SCORES, 0.4).int().tolist() == [[[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]]
    assert top_share(SCORES, 0.1).int().tolist() == [[[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]]
    assert top_share(SCORES, 1.0).all()


def test_top_share_counts_valid_pixels_only() -> None:
    """Two thirds of pixels 0, 2 and 3 in the first row, one of one in the second, none of none in the third."""
    valid = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = top_share(SCORES[:, :1].expand(3, -1, -1), 2 / 3, valid)
    assert found.int().tolist() == [[[1, 0, 1, 0, 0]], [[0, 0, 0, 1, 0]], [[0, 0, 0, 0, 0]]]


def test_full_masks_equal_no_mask() -> None:
    """Counts are rounded alike with and without a mask, for every number of pixels up to 60."""
    for pixels in range(1, 61):
        scores = torch.randn(2, 3, pixels)
        for ratio in (0.1, 0.3, 0.5, 0.8):
            assert torch.equal(
                top_share(scores, ratio), top_share(scores, ratio, torch.ones(2, pixels, dtype=torch.bool))
            )


def test_noise_has_gumbel_statistics() -> None:
    """Mean 0.5772 (Euler's constant) and variance pi^2 / 6; the same from the same seed."""
    torch.manual_seed(3)
    noise = gumbel_like(torch.empty(100_000))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    torch.manual_seed(3)
    assert torch.equal(noise, gumbel_like(torch.empty(100_000)))


def test_straight_through_gradient_of_retrieval() -> None:
    """Values are 0 and 1. The gradient of sum(w M) is that of sum(w softmax((s + g) / tau)), for scores and tau."""
    scores, tau = SCORES.double().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    noise, weight = torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    mask = straight_through(scores, tau, noise, 0.4)
    assert torch.equal(mask.detach(), top_share(scores.detach() + noise, 0.4).double())
    got = torch.autograd.grad((weight * mask).sum(), (scores, tau))
    wanted = torch.autograd.grad((weight * ((scores + noise) / tau).softmax(-1)).sum(), (scores, tau))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().min() > 0


def test_scores_are_cosines() -> None:
    """Two expressions share the pixels of one image. A word of zeros has no direction and gets cosines of 0."""
    module = retrieval()
    pixels, words = torch.randn(1, 7, 6), torch.randn(2, 3, 5)
    scores = module.scores(pixels, words, Groups([2], "cpu"))
    wanted = torch.cosine_similarity(
        module.project_words(words)[:, :, None], module.project_pixels(pixels)[:, None].expand(2, -1, -1, -1), -1
    )
    torch.testing.assert_close(scores, wanted)
    torch.nn.init.zeros_(module.project_words.weight)
    torch.nn.init.zeros_(module.project_words.bias)
    assert not module.scores(pixels, words, Groups([2], "cpu")).any()


def test_noise_is_used_in_training_only() -> None:
    """In training the mask depends on the seed. At test time it depends on the scores alone, and no noise is drawn."""
    module, scores = retrieval(ratio=0.3), torch.rand(2, 3, 40) * 0.1
    masks = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        masks.append(module(scores, None))
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])
    assert all(torch.equal(mask.detach().sum(-1), torch.full((2, 3), 12.0)) for mask in masks)
    module.eval()
    state = torch.get_rng_state()
    assert torch.equal(module(scores, None), top_share(scores, 0.3).float())
    module.log_temperature.data.fill_(3.0)
    assert torch.equal(module(scores, None), top_share(scores, 0.3).float())
    assert torch.equal(torch.get_rng_state(), state)


def test_training_without_noise_equals_evaluation() -> None:
    module, scores = retrieval(noise=0.0), torch.rand(2, 3, 40)
    assert torch.equal(module(scores, None).detach(), module.eval()(scores, None))


def test_padding_is_never_retrieved() -> None:
    module, scores = retrieval(), torch.rand(2, 3, 40)
    valid = torch.rand(2, 40) > 0.5
    scores = torch.where(valid[:, None], scores, 5.0)
    for training in (True, False):
        mask = module.train(training)(scores, valid)
        assert not mask.masked_select(~valid[:, None]).any() and mask.detach().sum(-1).min() >= 1


def test_invalid_arguments_raise() -> None:
    for ratio in (0.0, 1.1):
        with pytest.raises(ConfigError, match="ratio"):
            retrieval(ratio=ratio)
    with pytest.raises(ConfigError, match="temperature must be positive"):
        retrieval(temperature=0.0)
    with pytest.raises(ConfigError, match="noise must be at least 0"):
        retrieval(noise=-1.0)


def batch_of(*texts: str, word_of: list[list[int]]) -> Batch:
    batch = dummy_batch(shape=(32, 32), expressions_per_image=len(texts), num_words=len(word_of[0]))["batch"]
    tokens = replace(batch.tokens, word_of=torch.tensor(word_of))
    return replace(batch, metas=[replace(batch.metas[0], texts=texts)], tokens=tokens)


def test_global_and_local_cues() -> None:
    """Four tokens. The last one of the second expression is padding."""
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


def test_excluded_words_are_not_cues() -> None:
    """ "The" with a capital and "a" with a comma are articles, "another" is not. A word may have several tokens. In the
    second batch both expressions have the first text."""
    word_of = [[-1, 0, 1, 1, 2, 3, -1], [-1, 0, 1, 2, -1, -1, -1]]
    batch = batch_of("The doghouse near another", "cat, a, b", word_of=word_of)
    mask = torch.ones(2, 7, dtype=torch.bool)
    cues = Cues(without_words=ARTICLES)
    assert cue_mask(batch, mask, cues).int().tolist() == [[1, 0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1]]
    shared = batch_of("the dog", "the dog", word_of=[[-1, 0, 1]] * 2)
    tokens = replace(shared.tokens, word_of=shared.tokens.word_of[:1], text_of=torch.tensor([0, 0]))
    found = cue_mask(replace(shared, tokens=tokens), torch.ones(2, 3, dtype=torch.bool), cues)
    assert found.int().tolist() == [[1, 0, 1]] * 2


def test_a_single_string_raises() -> None:
    with pytest.raises(ConfigError, match="must be a list of words, not 'the'"):
        Cues(without_words="the")


def test_excluding_words_needs_word_of() -> None:
    batch = batch_of("the dog", word_of=[[-1, 0, 1]])
    batch = replace(batch, tokens=replace(batch.tokens, word_of=None))
    with pytest.raises(ValueError, match=r"needs tokens\.word_of"):
        cue_mask(batch, torch.ones(1, 3, dtype=torch.bool), Cues(without_words=ARTICLES))
