"""The visual expression: its equations, and inputs that must not change it."""

from __future__ import annotations

import pytest
import torch

from refseg.models.layers import Groups
from refseg.models.vipa.generator import AllPixelsGenerator, VisualExpression, VisualExpressionGenerator

B, K, L, P, C, D = 2, 3, 4, 10, 6, 8


def generator(**settings: object) -> VisualExpressionGenerator:
    torch.manual_seed(0)
    return VisualExpressionGenerator(pixel_dim=C, word_dim=D, joint_dim=4, num_heads=2, **settings).eval()


def all_pixels() -> AllPixelsGenerator:
    torch.manual_seed(0)
    return AllPixelsGenerator(pixel_dim=C, word_dim=D, num_heads=2).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    cues = torch.ones(B * K, L, dtype=torch.bool)
    cues[1, 2:] = False
    return torch.randn(B, P, C, generator=draw), torch.randn(B * K, L, D, generator=draw), cues


def shared(
    module: VisualExpressionGenerator,
    pixels: torch.Tensor,
    mask: torch.Tensor | None,
    words: torch.Tensor,
    cues: torch.Tensor,
) -> VisualExpression:
    """The expression of K phrases per image, which share its pixels."""
    image_of = torch.arange(B).repeat_interleave(K)
    return module(pixels, mask, words, cues, image_of=image_of, groups=Groups([K, K], "cpu"))


def test_generator_matches_its_equations() -> None:
    """Eqs. 5-7 as they are written, with pixels repeated for every cue."""
    module, (pixels, words, cues) = generator(), inputs()
    found = shared(module, pixels, None, words, cues)
    repeated = pixels.repeat_interleave(K, 0)  # (E, P, C)
    mask = found.retrieved
    assert set(mask.unique().tolist()) == {0.0, 1.0} and torch.equal(mask.sum(-1), torch.full((B * K, L), 3.0))
    sums = (repeated[:, None].expand(-1, L, -1, -1) * mask[..., None]).sum(2)
    tokens = module.norm(module.project(sums))
    layer = module.cross_attn_layer
    tokens = layer.norm1(tokens + layer.attn(tokens, repeated, mask > 0))
    tokens = layer.norm2(tokens + layer.ffn(tokens))
    torch.testing.assert_close(found.tokens, module.self_attn_layer(tokens, tokens, cues))


def test_without_step_2_tokens_are_the_sums() -> None:
    module, (pixels, words, cues) = generator(refine=False), inputs()
    found = shared(module, pixels, None, words, cues)
    sums = torch.bmm(found.retrieved, pixels.repeat_interleave(K, 0))
    torch.testing.assert_close(found.tokens, module.norm(module.project(sums)))


def test_centered_sums_ignore_the_mean_pixel() -> None:
    """Without step 2, adding a vector to all pixels of an image changes plain sums and not centered ones, if the same
    pixels are retrieved. Padded pixels are not part of the mean. With r = 100 % the sums are zero."""
    pixels, words, cues = inputs()
    valid = (torch.arange(P) < 7).expand(B, -1)
    for centered in (True, False):
        module = generator(refine=False, centered=centered)
        module.retrieval.scores = lambda *_: torch.arange(float(P)).expand(B * K, L, -1)
        one = shared(module, pixels.masked_fill(~valid[..., None], 9.0), valid, words, cues)
        two = shared(module, (pixels + 3).masked_fill(~valid[..., None], -4.0), valid, words, cues)
        assert torch.allclose(one.tokens, two.tokens, atol=1e-5) is centered
    tokens = shared(generator(refine=False, centered=True, ratio=1.0), pixels, None, words, cues).tokens
    torch.testing.assert_close(tokens, module.norm(module.project.bias).expand_as(tokens))


def test_without_step_1_all_pixels_are_tokens() -> None:
    module, (pixels, _, _) = all_pixels(), inputs()
    found = module(pixels, None)
    assert found.tokens.shape == (B, P, D) and found.scores is None and found.retrieved is None
    assert {name.split(".")[0] for name in module.state_dict()} == {
        name.split(".")[0] for name in generator().state_dict() if "retrieval" not in name
    }


def test_tokens_depend_on_words_only_through_retrieval() -> None:
    """With r = 100 % all words retrieve all pixels, so all words of an image have the same token."""
    module, (pixels, words, cues) = generator(ratio=1.0), inputs()
    tokens = shared(module, pixels, None, words, cues).tokens.unflatten(0, (B, K))
    torch.testing.assert_close(tokens, tokens[:, :1, :1].expand_as(tokens))
    assert not torch.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize("centered", [False, True])
def test_padding_has_no_effect(centered: bool) -> None:
    """Padded pixels and tokens that are not cues may hold anything. Each expression has its own pixels."""
    module, (pixels, words, cues) = generator(centered=centered), inputs()
    pixels, groups = pixels.repeat_interleave(K, 0), Groups(B * K, "cpu")
    valid = torch.arange(P) < torch.tensor([6, 10, 9, 1, 2, 7])[:, None]
    one = module(pixels, valid, words, cues, image_of=None, groups=groups)
    dirty, words = pixels.masked_fill(~valid[..., None], 9.0), words.masked_fill(~cues[..., None], -7.0)
    two = module(dirty, valid, words, cues, image_of=None, groups=groups)
    torch.testing.assert_close(one.tokens[cues], two.tokens[cues])
    one, two = all_pixels()(pixels, valid), all_pixels()(dirty, valid)
    torch.testing.assert_close(one.tokens[valid], two.tokens[valid])


def test_padded_images_equal_cropped_ones() -> None:
    module, (pixels, words, cues) = generator(), inputs()
    valid = (torch.arange(P) < 7).expand(B, -1)
    padded = shared(module, pixels, valid, words, cues)
    cropped = shared(module, pixels[:, :7], None, words, cues)
    torch.testing.assert_close(padded.tokens, cropped.tokens)
    assert torch.equal(padded.retrieved[..., :7], cropped.retrieved) and not padded.retrieved[..., 7:].any()


def test_expressions_without_cues_are_finite() -> None:
    module, (pixels, words, cues) = generator(), inputs()
    found = shared(module, pixels, None, words, torch.zeros_like(cues))
    assert torch.isfinite(found.tokens).all()
