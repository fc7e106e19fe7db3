"""The contract of image encoders, for every kind: channels, strides, gradients, and independence of the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models import BackboneEncoder, FusedEncoder, VisionEncoder
from refseg.models.encoders import vision
from refseg.models.encoders.fused import build_vision
from refseg.models.encoders.vision import SimplePyramid, flatten_map, unflatten_map

VIT = dict(depth=2, embed_dim=32, num_heads=2)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
MIT = dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
ENCODERS = {
    "swin": dict(
        type="SwinEncoder",
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        window_size=4,
        drop_path_rate=0.0,
    ),
    "conv": dict(type="ConvEncoder", dims=(4, 6, 8, 10)),
    "timm convnext": dict(
        type="TimmEncoder", name="convnext_atto", options=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    ),
    "timm resnet": dict(
        type="TimmEncoder", name="resnet18", options=dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
    ),
    "timm mobilenet": dict(type="TimmEncoder", name="mobilenetv3_small_050"),
    "timm mobilevit": dict(type="TimmEncoder", name="mobilevit_xxs"),
    "timm swin": dict(
        type="TimmEncoder", name="swin_tiny_patch4_window7_224", options=dict(depths=(1, 1, 1, 1), embed_dim=12)
    ),
    "timm hrnet": dict(type="TimmEncoder", name="hrnet_w18_small"),
    "timm vit": dict(type="TimmEncoder", name="vit_tiny_patch16_224", options=VIT, pyramid_dim=16),
    "timm dinov2": dict(type="TimmEncoder", name="vit_small_patch14_dinov2", options=VIT, pyramid_dim=16),
    "transformers swin": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4),
    ),
    "transformers convnextv2": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="convnextv2", hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    ),
    "transformers dinov2": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
        pyramid_dim=16,
    ),
    "transformers siglip": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="siglip_vision_model", patch_size=16, **SMALL),
        pyramid_dim=16,
    ),
    "transformers siglip2": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="siglip2_vision_model", patch_size=16, **SMALL),
        pyramid_dim=16,
    ),
    "transformers clip": dict(
        type="TransformersVisionEncoder",
        config=dict(model_type="clip_vision_model", patch_size=16, **SMALL),
        pyramid_dim=16,
    ),
    "mmdet resnet": dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8, norm_eval=False),
    "mmdet swin": dict(
        type="mmdet.SwinTransformer", embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4
    ),
    "mmseg mit": dict(type="mmseg.MixVisionTransformer", **MIT),
}
STAGED = ("swin", "conv", "timm convnext", "timm resnet", "timm mobilenet", "timm mobilevit", "timm swin")


@pytest.fixture(params=ENCODERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def encoder(kind: str, out_stages: tuple[int, ...] = (0, 1, 2, 3), **settings: object) -> VisionEncoder:
    """Build an encoder with the same random weights in each call, in evaluation mode."""
    torch.manual_seed(0)
    return build_vision({**ENCODERS[kind], **settings}, out_stages).eval()


def images_of(height: int, width: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 96), (128, 32)])
def test_maps_have_the_announced_channels_and_strides(kind: str, size: tuple[int, int]) -> None:
    model = encoder(kind)
    assert model.staged == (kind in STAGED) and model.num_stages == 4
    with torch.no_grad():
        maps = model(images_of(*size))
    wanted = [(2, dim, size[0] // s, size[1] // s) for dim, s in zip(model.dims, model.strides, strict=True)]
    assert [tuple(one.shape) for one in maps] == wanted
    assert model.strides == ((2, 4, 8, 16) if kind == "conv" else (4, 8, 16, 32))
    assert all(torch.isfinite(one).all() and one.std() > 0 for one in maps)


def test_out_stages_are_a_choice_of_the_maps(kind: str) -> None:
    images = images_of(64, 96)
    model, whole = encoder(kind, (3, 1)), encoder(kind)
    assert model.out_stages == (1, 3)
    whole.load_state_dict(model.state_dict(), strict=False)  # some have no norms of other stages
    with torch.no_grad():
        maps, wanted = model(images), whole(images)
    for one, other in zip(maps, wanted[1::2], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("out_stages", [(0, 1, 2, 3), (1, 3)])
def test_every_trained_parameter_gets_a_gradient(kind: str, out_stages: tuple[int, ...]) -> None:
    """Distributed training fails on others: those of norms and pyramids for maps that nothing uses are frozen."""
    model = encoder(kind, out_stages).train()
    sum(one.square().mean() for one in model(images_of(64, 96))).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(p.requires_grad for p in model.parameters()) > 0.7 * len([*model.parameters()])


def test_one_image_gives_what_it_gives_in_a_batch(kind: str) -> None:
    model, images = encoder(kind), images_of(64, 96)
    with torch.no_grad():
        for one, alone in zip(model(images), model(images[1:]), strict=True):
            torch.testing.assert_close(one[1:], alone, atol=1e-4, rtol=1e-4)


def test_layout_of_the_images_changes_nothing(kind: str) -> None:
    model, images = encoder(kind), images_of(64, 96)
    with torch.no_grad():
        maps, other = model(images), model(images.contiguous(memory_format=torch.channels_last))
    for one, two in zip(maps, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_weights_can_be_saved_and_survive_mmengines_init(kind: str) -> None:
    """mmengine calls `init_weights` of all parts, and timm's and transformers' models have methods of that name."""
    model, images = encoder(kind), images_of(64, 96)
    torch.manual_seed(1)
    other = build_vision(ENCODERS[kind], (0, 1, 2, 3)).eval()
    with torch.no_grad():
        wanted = model(images)
        assert not torch.allclose(other(images)[0], wanted[0])
        other.load_state_dict(model.state_dict())
        for one, two in zip(other(images), wanted, strict=True):
            torch.testing.assert_close(one, two)
        if not kind.startswith("mm"):  # those initialize themselves
            model.init_weights()
            for one, two in zip(model(images), wanted, strict=True):
                torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", STAGED)
def test_stage_by_stage_is_the_whole(kind: str) -> None:
    """FusedEncoder's loop of stages, with a fusion that changes nothing, against `forward`."""
    model, images = encoder(kind), images_of(64, 96)
    with torch.no_grad():
        wanted = model(images)
        pixels, size = model.embed(images)
        for stage in range(model.num_stages):
            pixels = model.run_stage(stage, pixels, size)
            torch.testing.assert_close(unflatten_map(model.norm(stage, pixels), size), wanted[stage])
            if stage < 3:
                pixels, size = model.downsample(stage, pixels, size)


@pytest.mark.parametrize("kind", ["timm convnext", "timm mobilenet", "timm vit", "transformers dinov2", "swin"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = encoder(kind, checkpointing=checkpointing).train()
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        sum(one.square().mean() for one in model(images_of(64, 96))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["timm resnet", "timm dinov2", "transformers clip"])
def test_a_frozen_encoder_stays_as_it_is(kind: str) -> None:
    """Only a pyramid is trained. BatchNorm keeps its statistics in a training step."""
    model = encoder(kind, frozen=True)
    before = copy.deepcopy(model.backbone.state_dict())
    fresh = [build_vision({**ENCODERS[kind], "frozen": True}, (0, 1, 2, 3)), model.train()]
    assert not any(part.training for one in fresh for part in one.backbone.modules())
    maps = model(images_of(64, 96))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("pyramid.")}
    assert bool(trained) == maps[0].requires_grad


# Backbones of other libraries -----------------------------------------------------------------------------------------


class Backbone(BaseModule):
    """Maps of given strides, and a parameter that nothing uses."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 4 + i, stride, stride) for i, stride in enumerate(strides))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [conv(images) for conv in self.convs]


def test_unused_parameters_are_frozen() -> None:
    """Distributed training fails on parameters without a gradient."""
    model = BackboneEncoder(backbone=Backbone(4, 8), out_stages=(0, 1))
    assert (model.dims, model.strides, model.num_stages) == ((4, 5), (4, 8), 2)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["backbone.unused"]


def test_strides_of_several_maps_are_powers_of_two() -> None:
    """224 pixels at stride 64 are 3.5: three here, which is 74.7 pixels for each."""
    assert BackboneEncoder(backbone=Backbone(32, 64), out_stages=(0, 1)).strides == (32, 64)


def test_what_the_backbone_froze_stays_frozen() -> None:
    backbone = Backbone(4, 8)
    backbone.convs[0].requires_grad_(False)
    model = BackboneEncoder(backbone=backbone, out_stages=(0, 1))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "backbone.convs.1.weight",
        "backbone.convs.1.bias",
    }


def test_patches_of_14_pixels_become_16() -> None:
    """A 64 x 96 image is resized to 56 x 84, which is 4 x 6 patches: stride 16 of the image that was given."""
    seen = []
    model = BackboneEncoder(backbone=Backbone(14), pyramid_dim=8)
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    maps = model(torch.zeros(1, 3, 64, 96))
    assert seen == [(1, 3, 56, 84)] and model.strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in maps] == [(1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]


def test_pyramid_of_few_channels() -> None:
    """One channel: halves and quarters are rounded up to one."""
    assert [tuple(one.shape) for one in SimplePyramid(1, 2)(torch.zeros(1, 1, 2, 4))] == [
        (1, 2, 8, 16),
        (1, 2, 4, 8),
        (1, 2, 2, 4),
        (1, 2, 1, 2),
    ]


def test_maps_and_pixels_are_inverse() -> None:
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    pixels, size = flatten_map(maps)
    assert size == (3, 4) and torch.equal(pixels[0, 5], maps[0, :, 1, 1])
    assert torch.equal(unflatten_map(pixels, size), maps)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"out_stages \(0, 4\) must be stages of BackboneEncoder, which has 2 here"):
        BackboneEncoder(backbone=Backbone(4, 8), out_stages=(0, 4))
    with pytest.raises(ConfigError, match=r"out_stages \(\) must be stages of ConvEncoder"):
        build_vision(ENCODERS["conv"], ())
    with pytest.raises(ConfigError, match=r"encoder\.vision: it cannot be built.*99"):
        build_vision(dict(type="mmdet.ResNet", depth=99), (0, 1, 2, 3))
    monkeypatch.setattr(vision, "PROBE_SIDE", 64)
    assert encoder("mmdet resnet").strides == (4, 8, 16, 32)
    with pytest.raises(ConfigError, match="out_stages is not allowed"):
        FusedEncoder(vision={**ENCODERS["conv"], "out_stages": (0,)}, text={})
