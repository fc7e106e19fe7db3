"""Mask2Former's pixel decoder: mmdet's numbers, and padding that is not read."""

from dataclasses import replace

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.layers import PixelDecoder
from refseg.structures import EncodedFeatures

DIMS, SIZES = (8, 12, 16, 20), ((24, 32), (12, 16), (6, 8), (3, 4))


def decoder(num_layers: int = 2, **settings: int) -> PixelDecoder:
    torch.manual_seed(0)
    sizes = dict(level_dims=DIMS, embed_dim=32, mask_dim=10, num_layers=num_layers, num_heads=4, ffn_dim=48)
    module = PixelDecoder(**{**sizes, **settings})
    for layer in module.mmdet_decoder.encoder.layers:  # they begin with zeros; as after some training
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.3)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.3)
    return module.eval()


def features(masks: list[torch.Tensor] | None = None) -> EncodedFeatures:
    draw = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, dim, *size, generator=draw) for dim, size in zip(DIMS, SIZES, strict=True)]
    masks = masks or [torch.ones(2, *size, dtype=torch.bool) for size in SIZES]
    return EncodedFeatures(levels, masks, (4, 8, 16, 32), torch.arange(2))


def test_pixel_decoder_equals_mmdets() -> None:
    """Mask features and the three levels, from coarse to fine."""
    module, given = decoder(), features()
    with torch.no_grad():
        ours = module(given, padded=False)
        mask_feats, levels = module.mmdet_decoder(given.levels)
    torch.testing.assert_close(ours.mask_feats, mask_feats, atol=1e-4, rtol=1e-4)
    assert ours.sizes == [(3, 4), (6, 8), (12, 16)]
    for mine, theirs, size in zip(ours.levels, levels, ours.sizes, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2).unflatten(2, size), theirs, atol=1e-4, rtol=1e-4)


def test_the_finest_level_of_deris() -> None:
    """mmdet's with a ReLU after the first convolution's norm, and biases that its convolutions apply. (With
    one channel in a group, GroupNorm takes biases away.)"""
    module, given = decoder(finest_relu=True, embed_dim=64), features()
    convs = (module.mmdet_decoder.lateral_convs[0], module.mmdet_decoder.output_convs[0])
    for conv in convs:
        torch.nn.init.normal_(conv.conv.bias)
    with torch.no_grad():
        ours = module(given, padded=False).mask_feats
        module.mmdet_decoder.lateral_convs[0] = torch.nn.Sequential(convs[0], torch.nn.ReLU())
        torch.testing.assert_close(ours, module.mmdet_decoder(given.levels)[0], atol=1e-4, rtol=1e-4)
        for conv in convs:
            conv.conv.bias = None
        assert not torch.allclose(ours, module.mmdet_decoder(given.levels)[0], atol=1e-2)


def test_padding_is_masked() -> None:
    """Whatever the right half of each level holds, the levels' left half stays the same. (GroupNorm, which counts all
    pixels, is taken out.)"""
    masks = [torch.ones(2, *size, dtype=torch.bool) for size in SIZES]
    for mask in masks:
        mask[..., mask.shape[-1] // 2 :] = False
    module = decoder()
    for project in module.mmdet_decoder.input_convs:
        project.gn = torch.nn.Identity()
    clean = features(masks)
    dirty = replace(clean, levels=[level.clone() for level in clean.levels])
    for level, mask in zip(dirty.levels, masks, strict=True):
        level.transpose(0, 1)[:, ~mask] = 30.0
    with torch.no_grad():
        one, other = module(clean, padded=True), module(dirty, padded=True)
    for a, b, valid in zip(one.levels, other.levels, one.masks, strict=True):
        torch.testing.assert_close(a[valid.flatten(1)], b[valid.flatten(1)])


def test_pixel_decoder_needs_four_levels() -> None:
    with pytest.raises(ConfigError, match="four encoder levels"):
        PixelDecoder(level_dims=(8, 8, 8))
