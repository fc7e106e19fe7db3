"""BEiT-3 against a plain version of its layers, and changes that must have no effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.referring_checks import padded_images, with_padded_words
from refseg.analysis.synthetic import dummy_batch
from refseg.errors import ConfigError
from refseg.models.encoders.beit3 import ARCHS, BEiT3Encoder, beit3_arch, resize_positions
from refseg.models.encoders.multiway import MultiwayLayer, Streams
from refseg.structures import Batch

ARCH = dict(embed_dim=16, num_layers=3, num_heads=2, vocab_size=50, text_positions=30)


def encoder(**settings: object) -> BEiT3Encoder:
    torch.manual_seed(0)
    return BEiT3Encoder(**(dict(arch=ARCH, image_size=32, patch_size=8, drop_path_rate=0.0) | settings)).eval()


def batch_of(shape: tuple[int, int] = (32, 48), **settings: int) -> Batch:
    """Two images with three phrases each, as floats."""
    batch = dummy_batch(shape=shape, num_images=2, expressions_per_image=3, num_words=5, vocab_size=50)["batch"]
    return replace(batch, images=batch.images.float() / 128 - 1)


def encoded(module: BEiT3Encoder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        features, text = module(batch)
    return features.levels[-1], text.word_feats


# Definition -----------------------------------------------------------------------------------------------------------


def randomize(module: nn.Module) -> None:
    """Change all parameters, norms and biases included, so that each has an effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_layer_matches_its_definition() -> None:
    """Token by token and head by head, with sums over the valid tokens: 1 + 3 pixels and 2 words, of which the last is
    padding."""
    torch.manual_seed(0)
    layer = MultiwayLayer(8, 2, 12).double()
    randomize(layer)
    streams = Streams(torch.randn(1, 4, 8).double(), torch.randn(1, 2, 8).double())
    valid = torch.tensor([[True] * 5 + [False]])
    tokens, ways = torch.cat(streams, 1)[0], ["vision"] * 4 + ["language"] * 2

    def of(name: str, way: str) -> nn.Module:
        return getattr(getattr(layer, name), way)

    read = []
    for x, way in zip(tokens, ways, strict=True):
        query = of("query", way)(of("norm1", way)(x)).unflatten(0, (2, 4))
        scores, values = [], []
        for other, other_way in list(zip(tokens, ways, strict=True))[:5]:
            normed = of("norm1", other_way)(other)
            scores.append((query * of("key", other_way)(normed).unflatten(0, (2, 4))).sum(1) / 2)
            values.append(of("value", other_way)(normed).unflatten(0, (2, 4)))
        weights = torch.stack(scores).softmax(0)  # (tokens, heads)
        read.append((weights[..., None] * torch.stack(values)).sum(0).flatten())
    wanted = []
    for x, way, found in zip(tokens, ways, read, strict=True):
        x = x + of("out", way)(of("inner_norm", way)(found))
        ffn = of("ffn", way)
        hidden = F.gelu(ffn.fc1(of("norm2", way)(x)))
        wanted.append(x + ffn.fc2(ffn.norm(hidden)))
    for word_valid in (None, valid[:, None].expand(-1, 2, -1)):
        got = torch.cat(layer(streams, valid, word_valid), 1)[0]
        torch.testing.assert_close(got, torch.stack(wanted))


def test_words_may_have_their_own_mask() -> None:
    """The first word does not attend to the second; pixels and the second itself do."""
    torch.manual_seed(0)
    layer, valid = MultiwayLayer(8, 2, 12), torch.ones(1, 6, dtype=torch.bool)
    word_valid = torch.ones(1, 2, 6, dtype=torch.bool)
    word_valid[0, 0, 5] = False
    pixels, words = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    other = words.clone()
    other[:, 1] = 3.0 * torch.randn(8)
    one, two = (layer.attend(Streams(pixels, x), valid, word_valid) for x in (words, other))
    torch.testing.assert_close(one.words[:, 0], two.words[:, 0])
    assert not torch.allclose(one.pixels, two.pixels) and not torch.allclose(one.words[:, 1], two.words[:, 1])


def test_positions_start_at_the_third_row() -> None:
    """Rows 0 and 1 of both tables are unused; row 2 is for the class token and the first word."""
    module, batch = encoder(), batch_of((32, 32))
    streams, valid, size = module.embed(batch)
    pixels, words = (module.positions[way].weight for way in ("vision", "language"))
    assert size == (4, 4) and pixels.shape == (2 + 1 + 16, 16) and valid.shape == (6, 17 + 5)
    torch.testing.assert_close(streams.pixels[4, 0], module.class_token[0, 0] + pixels[2])
    patch = module.patch_embed(batch.images)[1, :, 0, 1]
    torch.testing.assert_close(streams.pixels[4, 2], patch + pixels[4])
    torch.testing.assert_close(streams.words[4, 1], module.text_embed.weight[batch.tokens.ids[4, 1]] + words[3])


def test_positions_of_other_sizes() -> None:
    """Three rows stay, the others are a 4 x 4 grid, resized bicubically. The same size returns the table itself."""
    table = torch.randn(19, 16)
    torch.testing.assert_close(resize_positions(table, (4, 4), (4, 4)), table)
    resized = resize_positions(table, (4, 6))
    picture = table[3:].t().unflatten(1, (4, 4))[None]
    wanted = F.interpolate(picture, size=(4, 6), mode="bicubic", align_corners=False)[0].flatten(1).t()
    assert torch.equal(resized[:3], table[:3])
    torch.testing.assert_close(resized[3:], wanted)


def test_sizes_of_the_published_models() -> None:
    """By hand: a layer has per stream 4 (C C + C) + 2 x 4 C C + 5 C of projections, three norms of C and one of 4 C;
    the rest is tables and the last norm. 480 x 480 has 900 patches of 16. The official
    base at that size was counted: 221.5 M."""
    for name in ("base", "large"):
        arch = ARCHS[name]
        dim = arch.embed_dim
        layer = 4 * (dim**2 + dim) + 8 * dim**2 + 5 * dim + 3 * 2 * dim + 2 * 4 * dim
        rest = (64010 + 1024 + 903 + 1) * dim + 3 * 256 * dim + dim + 4 * dim
        with torch.device("meta"):
            module = BEiT3Encoder(arch=name)
        number = sum(p.numel() for p in module.parameters())
        assert number == 2 * arch.num_layers * layer + rest
        assert name != "base" or round(number / 1e6, 1) == 221.5


def test_levels_are_finer_and_coarser() -> None:
    module, batch = encoder(level_scales=(4, 2, 1)), batch_of()
    with torch.no_grad():
        features, text = module(batch)
    assert module.level_dims == (4, 8, 16) and module.strides == features.strides == (2, 4, 8)
    assert [tuple(x.shape) for x in features.levels] == [(6, 4, 16, 24), (6, 8, 8, 12), (6, 16, 4, 6)]
    assert [tuple(m.shape) for m in features.masks] == [(6, 16, 24), (6, 8, 12), (6, 4, 6)]
    assert features.image_of is None and text.text_of is None
    assert text.word_feats.shape == (6, 5, 16) and text.word_mask.all()


# Changes without effect -----------------------------------------------------------------------------------------------


def test_padding_has_no_effect() -> None:
    """Four padded words are added, and the right third of the image is padding."""
    module, batch = encoder(level_scales=(2, 1)), batch_of()
    (pixels, words), (other, more) = encoded(module, batch), encoded(module, with_padded_words(batch))
    torch.testing.assert_close(other, pixels, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(more[:, :5], words, atol=1e-5, rtol=1e-4)
    padded = padded_images(batch, 32, 32)
    noisy = replace(padded, images=torch.where(padded.pixel_mask[:, None], padded.images, 5.0))
    (pixels, words), (other, more) = encoded(module, padded), encoded(module, noisy)
    torch.testing.assert_close(other[..., :4], pixels[..., :4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(more, words, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other[..., 4:], pixels[..., 4:])


def test_padding_does_not_leak_into_levels() -> None:
    module = encoder(level_scales=(4, 2, 1))
    padded = padded_images(batch_of(), 32, 32)
    noisy = replace(padded, images=torch.where(padded.pixel_mask[:, None], padded.images, 5.0))
    with torch.no_grad():
        one, two = module(padded)[0], module(noisy)[0]
    for x, y, mask in zip(one.levels, two.levels, one.masks, strict=True):
        keep = mask[:, None].expand_as(x)
        torch.testing.assert_close(x[keep], y[keep], atol=1e-5, rtol=1e-4)


def test_texts_may_be_shared() -> None:
    """Six expressions share one text."""
    module, batch = encoder(), batch_of()
    shared = replace(batch, tokens=replace(batch.tokens, text_of=torch.full((6,), 2)))
    pixels, _ = encoded(module, shared)
    torch.testing.assert_close(pixels[0], pixels[1])
    single = replace(shared.tokens, ids=shared.tokens.ids[2:3], word_mask=shared.tokens.word_mask[2:3])
    single = replace(single, text_of=torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(encoded(module, replace(batch, tokens=single))[0], pixels)


def test_words_and_pixels_attend_to_each_other() -> None:
    module, batch = encoder(), batch_of()
    pixels, words = encoded(module, batch)
    tokens = replace(batch.tokens, text_of=batch.tokens.text_of.flip(0))
    assert not torch.allclose(encoded(module, replace(batch, tokens=tokens))[0], pixels, atol=1e-4)
    assert not torch.allclose(encoded(module, replace(batch, images=batch.images.flip(0)))[1], words, atol=1e-4)


# Training -------------------------------------------------------------------------------------------------------------


def gradients(module: BEiT3Encoder) -> dict[str, torch.Tensor]:
    module.train()
    features, text = module(batch_of())
    draw = torch.Generator().manual_seed(3)  # sums of normed features alone would be constant
    loss = sum((x * torch.randn(x.shape, generator=draw)).sum() for x in (*features.levels, text.word_feats))
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_every_parameter_gets_a_gradient() -> None:
    """Except biases of keys, which cancel in the softmax."""
    found = gradients(encoder(level_scales=(2, 1)))
    unseen = [name for name, grad in found.items() if grad is None or not grad.any()]
    assert [name for name in unseen if ".key." not in name or not name.endswith("bias")] == []


def test_checkpointed_layers_give_the_same_gradients() -> None:
    plain, saving = gradients(encoder()), gradients(encoder(checkpointing=True))
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, atol=1e-6, rtol=1e-4)


def test_drop_path_drops_whole_rows_in_training_only() -> None:
    """The first layer drops none. A dropped row keeps both streams; the update of others is scaled by 1 / (1 - p)."""
    module = encoder(drop_path_rate=0.5)
    assert [layer.drop_prob for layer in module.layers] == [0.0, 0.25, 0.5]
    layer = module.layers[2].train()
    streams = Streams(torch.randn(64, 3, 16), torch.randn(64, 2, 16))
    torch.manual_seed(0)
    with torch.no_grad():
        found, full = layer.feed_forward(streams), layer.eval().feed_forward(streams)
    factors = [(one - x).flatten(1).norm(dim=1) / (all_ - x).flatten(1).norm(dim=1)
               for one, all_, x in zip(found, full, streams, strict=True)]  # fmt: skip
    torch.testing.assert_close(*factors, atol=1e-4, rtol=1e-4)
    assert set(factors[0].round(decimals=3).tolist()) == {0.0, 2.0}


def test_initial_weights_follow_sub_ln() -> None:
    """Standard deviations are Xavier's, sqrt(1 / C), and sqrt(ln 6) times that in layers that values pass through."""
    module = encoder(arch=dict(ARCH, embed_dim=128))
    attention, ffn = module.layers[0], module.layers[0].ffn.language
    for name, gain in (("query", 1.0), ("key", 1.0), ("value", 1.3386), ("out", 1.3386)):
        weight = getattr(attention, name).vision.weight
        assert weight.std().item() == pytest.approx(gain * 128**-0.5, rel=0.03)
    assert ffn.fc1.weight.std().item() == pytest.approx(1.3386 * (2 / 640) ** 0.5, rel=0.03)
    assert not ffn.fc2.bias.any()


def test_initial_waves_distinguish_positions() -> None:
    """Waves of neighbors are alike and those of far patches are not, at the scale of patch embeddings. Noise is not."""
    grids = {
        first: encoder(arch=dict(ARCH, embed_dim=256), image_size=64, first_positions=first).pixel_positions((8, 8))[1:]
        for first in ("noise", "waves")
    }
    for first, alike in (("noise", False), ("waves", True)):
        grid = F.normalize(grids[first].unflatten(0, (8, 8)), dim=-1)
        near, far = (grid[:, 1:] * grid[:, :-1]).sum(-1).mean(), (grid[:, 0] * grid[:, -1]).sum(-1).mean()
        assert (near - far > 0.15) == alike
    assert grids["waves"].std().item() == pytest.approx(0.7, abs=0.1)
    assert grids["noise"].std().item() == pytest.approx(0.02, rel=0.1)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"Unknown BEiT3Encoder\.arch 'huge'\. Valid: base, large"):
        beit3_arch("huge")
    with pytest.raises(ConfigError, match="valid keys are embed_dim"):
        beit3_arch(dict(ARCH, depth=2))
    with pytest.raises(ConfigError, match="not a multiple of num_heads 3"):
        beit3_arch(dict(ARCH, num_heads=3))
    with pytest.raises(ConfigError, match="not a multiple of patch_size"):
        encoder(image_size=30)
    for scales in ((), (3,), (0,), (16, 1)):
        with pytest.raises(ConfigError, match="powers of two"):
            encoder(level_scales=scales)
    with pytest.raises(ConfigError, match=r"first_positions 'zeros'\. Valid values: noise, waves"):
        encoder(first_positions="zeros")
    with pytest.raises(ConfigError, match="from fine to coarse"):
        encoder(level_scales=(1, 2))
    with pytest.raises(ValueError, match="Token id 50 exceeds the text encoder's vocab_size 50"):
        batch = batch_of()
        encoder()(replace(batch, tokens=replace(batch.tokens, ids=torch.full((6, 5), 50))))
    with pytest.raises(ValueError, match="29 tokens, but BEiT-3 has positions for 28"):
        encoder()(with_padded_words(batch_of(), 24))
