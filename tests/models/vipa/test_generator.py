"""The visual expression against its equations, and what may not change it."""

from __future__ import annotations

import pytest
import torch

from refseg.models.layers import Groups
from refseg.models.vipa.generator import VisualExpressionGenerator

B, K, L, P, C, D = 2, 3, 4, 10, 6, 8


def generator(**settings: object) -> VisualExpressionGenerator:
    torch.manual_seed(0)
    return VisualExpressionGenerator(pixel_dim=C, word_dim=D, joint_dim=4, num_heads=2, **settings).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    cues = torch.ones(B * K, L, dtype=torch.bool)
    cues[1, 2:] = False
    return torch.randn(B, P, C, generator=draw), torch.randn(B * K, L, D, generator=draw), cues


def test_generator_matches_its_equations() -> None:
    """Eqs. 5-7 with pixels repeated for every cue, as they are written."""
    module, (pixels, words, cues) = generator(), inputs()
    found = module(pixels, None, words, cues, groups=Groups([K, K], "cpu"))
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
    found = module(pixels, None, words, cues, groups=Groups([K, K], "cpu"))
    sums = torch.bmm(found.retrieved, pixels.repeat_interleave(K, 0))
    torch.testing.assert_close(found.tokens, module.norm(module.project(sums)))


def test_without_step_1_all_pixels_are_tokens() -> None:
    module, (pixels, words, cues) = generator(retrieve=False), inputs()
    rows = pixels.repeat_interleave(K, 0)
    found = module(rows, None, words, cues, groups=Groups([1] * B * K, "cpu", by_image=False))
    assert found.tokens.shape == (B * K, P, D) and found.scores is None and found.retrieved is None
    assert not any("retrieval" in name for name in module.state_dict())


def test_tokens_depend_on_words_only_through_retrieval() -> None:
    """With r = 100 % all words retrieve all pixels: one and the same token for all words of an image."""
    module, (pixels, words, cues) = generator(ratio=1.0), inputs()
    tokens = module(pixels, None, words, cues, groups=Groups([K, K], "cpu")).tokens.unflatten(0, (B, K))
    torch.testing.assert_close(tokens, tokens[:, :1, :1].expand_as(tokens))
    assert not torch.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize("retrieve", [True, False])
def test_padding_has_no_effect(retrieve: bool) -> None:
    """Whatever padded pixels and tokens that are no cues hold."""
    module, (pixels, words, cues) = generator(retrieve=retrieve), inputs()
    pixels, groups = pixels.repeat_interleave(K, 0), Groups([1] * B * K, "cpu", by_image=False)
    valid = torch.arange(P) < torch.tensor([6, 10, 9, 1, 2, 7])[:, None]
    one = module(pixels, valid, words, cues, groups=groups)
    dirty = pixels.masked_fill(~valid[..., None], 9.0)
    two = module(dirty, valid, words.masked_fill(~cues[..., None], -7.0), cues, groups=groups)
    kept = cues if retrieve else valid
    torch.testing.assert_close(one.tokens[kept], two.tokens[kept])


def test_padded_images_equal_cropped_ones() -> None:
    module, (pixels, words, cues) = generator(), inputs()
    valid = (torch.arange(P) < 7).expand(B, -1)
    groups = Groups([K, K], "cpu")
    padded = module(pixels, valid, words, cues, groups=groups)
    cropped = module(pixels[:, :7], None, words, cues, groups=groups)
    torch.testing.assert_close(padded.tokens, cropped.tokens)
    assert torch.equal(padded.retrieved[..., :7], cropped.retrieved) and not padded.retrieved[..., 7:].any()


def test_expressions_without_cues_are_finite() -> None:
    module, (pixels, words, cues) = generator(), inputs()
    found = module(pixels, None, words, torch.zeros_like(cues), groups=Groups([K, K], "cpu"))
    assert torch.isfinite(found.tokens).all()
