"""The attention module against mmcv's, alone and inside mmdet's pixel decoder."""

import copy
import pickle

import pytest
import torch

import refseg  # noqa: F401  lets mmcv.ops import without a compiled extension
from refseg.ops.module import MultiScaleDeformableAttention, use_refseg_deformable_attention

SHAPES = [(4, 5), (2, 3), (1, 1)]
PIXELS = sum(h * w for h, w in SHAPES)


def mmcv_class():
    from mmcv.ops import MultiScaleDeformableAttention as theirs

    return theirs


def call(module, *, coordinates=2, queries=7, batch_first=True, padded=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    arguments = {"query": draw(2, queries, 16), "value": draw(2, PIXELS, 16), "query_pos": draw(2, queries, 16)}
    if not batch_first:
        arguments = {name: tensor.transpose(0, 1) for name, tensor in arguments.items()}
    shapes = torch.tensor(SHAPES)
    return module(
        **arguments,
        key_padding_mask=draw(2, PIXELS) > 0.5 if padded else None,
        reference_points=torch.rand(2, queries, len(SHAPES), coordinates, generator=generator),
        spatial_shapes=shapes,
        level_start_index=shapes.prod(1).cumsum(0) - shapes.prod(1),
        valid_ratios=None,
    )


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("value_proj_ratio", [1.0, 0.5])
def test_same_as_mmcv(coordinates, batch_first, padded, value_proj_ratio):
    settings = {
        "embed_dims": 16,
        "num_heads": 4,
        "num_levels": 3,
        "num_points": 2,
        "dropout": 0.0,
        "batch_first": batch_first,
        "value_proj_ratio": value_proj_ratio,
    }
    ours, theirs = MultiScaleDeformableAttention(**settings), mmcv_class()(**settings)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    outputs = [
        call(m, coordinates=coordinates, batch_first=batch_first, padded=padded).square().sum() for m in (ours, theirs)
    ]
    torch.testing.assert_close(*outputs)
    mine, expected = (
        torch.autograd.grad(out, list(m.parameters())) for out, m in zip(outputs, (ours, theirs), strict=True)
    )
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_wrong_arguments():
    module = MultiScaleDeformableAttention(16, num_heads=4, num_levels=3, num_points=2)
    with pytest.raises(ValueError, match="needs reference_points"):
        module(torch.zeros(1, 1, 16))
    with pytest.raises(ValueError, match="2 or 4 coordinates, got 3"):
        call(module, coordinates=3, batch_first=False)


def pixel_decoder():
    from mmdet.models.layers import MSDeformAttnPixelDecoder
    from mmengine.config import ConfigDict

    attention = {
        "embed_dims": 32,
        "num_heads": 4,
        "num_levels": 3,
        "num_points": 2,
        "dropout": 0.0,
        "batch_first": True,
    }
    layer = {"self_attn_cfg": attention, "ffn_cfg": {"embed_dims": 32, "feedforward_channels": 64, "ffn_drop": 0.0}}
    return MSDeformAttnPixelDecoder(
        in_channels=[8, 16, 24, 32],
        feat_channels=32,
        out_channels=32,
        norm_cfg={"type": "GN", "num_groups": 4},
        encoder=ConfigDict(num_layers=2, layer_cfg=layer),
        positional_encoding={"num_feats": 16, "normalize": True},
    )


def feature_maps():
    generator = torch.Generator().manual_seed(0)
    sizes = zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)
    return [torch.randn(2, channels, size, size + 1, generator=generator) for channels, size in sizes]


def test_pixel_decoder_of_mmdet_gives_the_same_numbers():
    """Offsets are random, because initial ones hit pixel centers, where the gradient of a location jumps."""
    torch.manual_seed(0)
    theirs = pixel_decoder()
    theirs.init_weights()
    for layer in theirs.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    ours = copy.deepcopy(theirs)
    parameters = dict(ours.named_parameters())
    assert use_refseg_deformable_attention(ours) == 2
    assert use_refseg_deformable_attention(ours) == 0, "those are ours already"
    assert all(parameter is parameters[name] for name, parameter in ours.named_parameters())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    outputs = [decoder(feature_maps()) for decoder in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    losses = [mask_features.square().mean() for mask_features, _ in outputs]
    mine, expected = (
        torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
        for loss, m in zip(losses, (ours, theirs), strict=True)
    )
    for a, b in zip(mine, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_pixel_decoder_of_mmdet_initializes_converted_modules():
    """mmdet redraws all matrices of the encoder, then initializes mmcv's attention modules once more."""
    decoder = pixel_decoder()
    use_refseg_deformable_attention(decoder)
    decoder.init_weights()
    for layer in decoder.encoder.layers:
        assert isinstance(layer.self_attn, MultiScaleDeformableAttention)
        assert isinstance(layer.self_attn, mmcv_class())
        assert not layer.self_attn.sampling_offsets.weight.any()
        assert layer.self_attn.sampling_offsets.bias.any()


def test_converted_modules_use_the_chosen_backend():
    decoder = pixel_decoder()
    use_refseg_deformable_attention(decoder, backend="nonsense")
    with pytest.raises(ValueError, match="unknown backend, 'nonsense'"):
        decoder(feature_maps())


def test_converted_module_can_be_copied_and_pickled():
    module = mmcv_class()(16, num_heads=4, num_levels=3, num_points=2, batch_first=True).eval()
    expected = call(module)
    assert use_refseg_deformable_attention(module) == 1
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert isinstance(same, MultiScaleDeformableAttention)
        torch.testing.assert_close(call(same), expected)


def test_module_without_attention_is_not_converted():
    assert use_refseg_deformable_attention(torch.nn.Linear(1, 1)) == 0
