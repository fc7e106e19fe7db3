"""PWAM, VLBA and staged cross-attention against their equations, written out step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError
from refseg.models.fusion import PWAM, VLBA, Fusion, StagedCrossAttention
from refseg.models.fusion.base import instance_norm
from refseg.models.layers import masked_softmax

E, P, L, C, D = 2, 6, 4, 8, 5


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    words = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    return torch.randn(E, P, C, generator=draw), torch.randn(E, L, D, generator=draw), words


def normed(x: Tensor) -> Tensor:
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_pwam_matches_its_equations(num_heads: int) -> None:
    """Eqs. 1-8 of LAVT: the output projection comes after pixels have gathered words, the mask is -inf. Scores of each
    head are divided by the root of all channels."""
    torch.manual_seed(0)
    pwam = PWAM(pixel_dim=C, word_dim=D, num_heads=num_heads)
    pixels, words, mask = inputs()
    heads = []
    query, key, value = (
        x.split(C // num_heads, -1) for x in (normed(pwam.query(pixels)), pwam.key(words), pwam.value(words))
    )
    for head in range(num_heads):
        scores = query[head] @ key[head].transpose(1, 2) / C**0.5
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ value[head])
    gathered = normed(pwam.out(torch.cat(heads, -1)))
    fused = F.gelu(pwam.project(F.gelu(pwam.vision(pixels)) * gathered))
    level, onwards, same_words = pwam(pixels, words, word_mask=mask, pixel_mask=None)
    torch.testing.assert_close(level, fused)
    hidden = F.relu(fused @ pwam.gate[0].weight.T)
    torch.testing.assert_close(onwards, pixels + torch.tanh(hidden @ pwam.gate[2].weight.T) * fused)
    assert same_words is words


def test_the_last_pwam_has_no_gate() -> None:
    pwam = PWAM(pixel_dim=C, word_dim=D, feeds_next=False)
    assert not any("gate" in name for name in pwam.state_dict())
    pixels, words, mask = inputs()
    assert pwam(pixels, words, word_mask=mask, pixel_mask=None).pixels is pixels


def test_vlba_matches_its_equations() -> None:
    """Eqs. 5-11 of LGFormer, with values projected before they are gathered, as written there."""
    torch.manual_seed(0)
    vlba = VLBA(pixel_dim=C, word_dim=D, bounded_gate=False)
    pixels, words, mask = inputs()
    scores = vlba.query(pixels) @ vlba.key(words).transpose(1, 2) / C**0.5
    to_words = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    pixel_response = vlba.w1(to_words @ vlba.word_value(words))
    word_response = vlba.w2(scores.transpose(1, 2).softmax(-1) @ vlba.pixel_value(pixels))

    def updated(x: Tensor, response: Tensor, update: torch.nn.Module) -> Tensor:
        fused = update.fuse(torch.cat([x, response], -1))
        return x + fused * update.gate(fused)

    level, onwards, new_words = vlba(pixels, words, word_mask=mask, pixel_mask=None)
    torch.testing.assert_close(level, updated(pixels, pixel_response, vlba.pixel_update))
    assert onwards is level
    torch.testing.assert_close(new_words, updated(words, word_response, vlba.word_update))


def staged(**settings: object) -> StagedCrossAttention:
    torch.manual_seed(0)
    return StagedCrossAttention(**{"pixel_dim": C, "word_dim": D, "head_dim": 1, **settings})


def test_staged_cross_attention_matches_its_equations() -> None:
    """Two heads of four channels, of pixels and of words."""
    draw = torch.Generator().manual_seed(1)
    fusion = staged(word_dim=8, head_dim=4)
    pixels, _, mask = inputs()
    words = torch.randn(E, L, 8, generator=draw)
    query, key, value = normed(fusion.query(pixels)), fusion.key(words), fusion.value(words)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 4**0.5
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ value[..., part])
    fused = F.gelu(fusion.project(pixels + normed(fusion.out(torch.cat(heads, -1)))))
    level, onwards, new_words = fusion(pixels, words, word_mask=mask, pixel_mask=None)
    torch.testing.assert_close(level, fused)
    hidden = F.relu(fused @ fusion.gate[0].weight.T)
    torch.testing.assert_close(onwards, pixels + torch.tanh(hidden @ fusion.gate[2].weight.T) * fused)
    layer = fusion.word_layer
    seen = layer.norm1(words + layer.attn(words, onwards))
    torch.testing.assert_close(new_words, layer.norm2(seen + layer.ffn(seen)))


def test_updates_words_selects_the_stages() -> None:
    """Between stages; after the last one too; never."""
    pixels, words, mask = inputs()
    for updates, feeds_next, same in (
        ("between", True, False),
        ("between", False, True),
        ("always", False, False),
        ("never", True, True),
    ):
        fusion = staged(updates_words=updates, feeds_next=feeds_next)
        out = fusion(pixels, words, word_mask=mask, pixel_mask=None)
        assert (out.words is words) is same
        assert (out.pixels is pixels) is not feeds_next


def test_staged_cross_attention_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"updates_words 'yes'\. Valid values: between, always, never"):
        staged(updates_words="yes")
    with pytest.raises(ConfigError, match="head_dim 3 must divide the 8 channels of pixels and 5 of words"):
        staged(head_dim=3)


def fusions() -> list[Fusion]:
    return [PWAM(pixel_dim=C, word_dim=D), VLBA(pixel_dim=C, word_dim=D), staged()]


def test_fusions_mask_padding() -> None:
    """What padded pixels and words hold changes nothing at the others."""
    mask = torch.tensor([[True] * 4 + [False] * 2] * E)
    for fusion in fusions():
        pixels, words, word_mask = inputs()
        first = fusion(pixels, words, word_mask=word_mask, pixel_mask=mask)
        pixels = pixels.masked_fill(~mask[..., None], 7.0)
        words = words.masked_fill(~word_mask[..., None], -3.0)
        second = fusion(pixels, words, word_mask=word_mask, pixel_mask=mask)
        for before, after, kept in zip(first, second, (mask, mask, word_mask), strict=True):
            torch.testing.assert_close(before[kept], after[kept])


def test_phrases_without_words_are_finite() -> None:
    pixels, words, _ = inputs()
    for fusion in fusions():
        out = fusion(pixels, words, word_mask=torch.zeros(E, L, dtype=torch.bool), pixel_mask=None)
        assert all(torch.isfinite(tensor).all() for tensor in out)


def test_instance_norm_by_hand() -> None:
    """One pixel is its own mean: 0. Of 1, 3 and a padded 100: mean 2, variance 1, so -1 and 1."""
    assert instance_norm(torch.ones(1, 1, 2), None).eq(0).all()
    x = torch.tensor([1.0, 3.0, 100.0])[None, :, None]
    out = instance_norm(x, torch.tensor([[True, True, False]]), eps=0.0)
    torch.testing.assert_close(out[0, :2, 0], torch.tensor([-1.0, 1.0]))


def test_masked_softmax_of_empty_rows_is_zero() -> None:
    scores = torch.zeros(2, 1, 3)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_softmax(scores, valid[:, None]).tolist() == [[[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0]]]
