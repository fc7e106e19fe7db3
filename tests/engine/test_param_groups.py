"""Learning rates by role and by layer."""

from __future__ import annotations

import pytest
from mmengine.registry import DefaultScope
from torch import nn

from refseg.engine.param_groups import layer_depths
from refseg.errors import ConfigError
from refseg.models import FusedEncoder
from refseg.registry import OPTIM_WRAPPER_CONSTRUCTORS


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(dict(layer=nn.Linear(2, 2), norm=nn.LayerNorm(2)))
        self.decoder = nn.Linear(2, 2)


def rates_of(model: nn.Module, paramwise: dict) -> dict[str, tuple[float, float]]:
    """Return the learning rate and weight decay of each parameter, for 1e-3 and 0.1."""
    with DefaultScope.overwrite_default_scope("refseg"):
        build = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type="EncoderRatesConstructor",
                optim_wrapper_cfg=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1)),
                paramwise_cfg=paramwise,
            )
        )
        groups = build(model).optimizer.param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("paramwise", [{}, dict(new_parts_lr_mult=10.0)])
def test_new_parts_have_their_own_rate(paramwise: dict) -> None:
    """Factors of `custom_keys` still apply: here 0.5 for the decoder's bias."""
    model, factor = Model(), paramwise.get("new_parts_lr_mult", 1.0)
    paramwise["custom_keys"] = {"norm": dict(decay_mult=0.0), "decoder.bias": dict(lr_mult=0.5)}
    assert rates_of(model, paramwise) == {
        "encoder.layer.weight": (1e-3, 0.1),
        "encoder.layer.bias": (1e-3, 0.1),
        "encoder.norm.weight": (1e-3, 0.0),
        "encoder.norm.bias": (1e-3, 0.0),
        "decoder.weight": (1e-3 * factor, 0.1),
        "decoder.bias": (0.5e-3 * factor, 0.1),
    }


# Rates by layer -------------------------------------------------------------------------------------------------------

SWIN = dict(
    type="SwinEncoder",
    arch=dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
    window_size=4,
    drop_path_rate=0.0,
)
VIT = dict(
    type="TimmEncoder",
    name="vit_tiny_patch16_224",
    options=dict(depth=3, embed_dim=32, num_heads=2),
    pyramid_dim=16,
)
RESNET = dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8)
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
BERT = dict(type="TextEncoder", config=dict(model_type="bert", **SMALL))
MPNET = dict(type="TextEncoder", config=dict(model_type="mpnet", **SMALL))
# Layers below the last one, by the start of a name. The first start that fits counts.
SWIN_LAYERS = {
    "patch_embed": 5,
    "stages.0.blocks.0": 4,
    "stages.1.blocks.0": 3,
    "stages.2.blocks.0": 2,
    "stages.2.blocks.1": 1,
    "stages.3.blocks.0": 0,
    "norm": 0,
}
VIT_LAYERS = {
    **{f"backbone.{name}": 3 for name in ("cls_token", "pos_embed", "patch_embed")},
    **{f"backbone.blocks.{block}": 2 - block for block in range(3)},
    "backbone.norm": 0,
}
RESNET_LAYERS = {
    **{f"backbone.{name}": 8 for name in ("conv1", "bn1")},
    **{f"backbone.layer{stage}.{block}": 8 - 2 * stage + 1 - block for stage in range(1, 5) for block in range(2)},
}
BERT_LAYERS = {"embeddings": 3, **{f"layers.{layer}": 2 - layer for layer in range(3)}}
MPNET_LAYERS = {
    "model.embeddings": 3,
    **{f"model.encoder.layer.{layer}": 2 - layer for layer in range(3)},
    "model.encoder.relative_attention_bias": 0,
}


class Segmentor(nn.Module):
    def __init__(self, vision: dict, text: dict) -> None:
        super().__init__()
        self.encoder = FusedEncoder(vision=vision, text=text, fusion=dict(type="PWAM"), fused_stages=(3,))
        self.decoder = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("vision", "text", "vision_layers", "text_layers"),
    [(SWIN, BERT, SWIN_LAYERS, BERT_LAYERS), (VIT, MPNET, VIT_LAYERS, MPNET_LAYERS), (RESNET, BERT, RESNET_LAYERS, {})],
    ids=["swin and bert", "vit and mpnet", "resnet"],
)
def test_rates_decrease_towards_the_first_layer(
    vision: dict, text: dict, vision_layers: dict, text_layers: dict
) -> None:
    """Each layer below the last one has half the rate in the image encoder, and a tenth in the text encoder.

    Encoders start from 0.4 of the rate, other parts and pyramids from 3 times the rate, and fusions from the rate.
    """
    decay = dict(vision=0.5, **({"text": 0.1} if text_layers else {}))
    model = Segmentor(vision, text)
    rates = rates_of(model, dict(layer_decay=decay, encoder_lr_mult=0.4, new_parts_lr_mult=3.0))
    patterns = [(f"encoder.vision.{start}", 0.4 * 0.5**k) for start, k in vision_layers.items()]
    patterns += [(f"encoder.text.{start}", 0.4 * 0.1**k) for start, k in text_layers.items()]
    patterns += [("encoder.vision.pyramid", 3.0)] * (vision is VIT)
    patterns += [("encoder.text", 0.4)] * (not text_layers) + [("encoder.fusions", 1.0), ("decoder", 3.0)]
    used = set()
    for name, (rate, _) in rates.items():
        fitting = [pattern for pattern in patterns if name.startswith((f"{pattern[0]}.", pattern[0]))]
        if name.startswith("encoder.vision.stages") and not fitting:  # Swin's downsampling counts as the block before
            stage = int(name.split(".")[3])
            fitting = [(name, 0.4 * 0.5 ** (4, 3, 1)[stage])]
        assert fitting and rate == pytest.approx(1e-3 * fitting[0][1]), name
        used.add(fitting[0][0])
    assert {pattern[0] for pattern in patterns} <= used


def test_layers_are_blocks_without_blocks_inside() -> None:
    """A block in a stage of a list of stages is a layer; a norm or a linear map alone is none."""
    block = nn.ModuleDict(dict(norm=nn.LayerNorm(2), linear=nn.Linear(2, 2)))
    stages = nn.ModuleList([nn.Sequential(block), nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))])
    model = nn.ModuleDict(dict(stem=nn.Linear(2, 2), stages=stages, end=nn.Linear(2, 2)))
    depths = layer_depths(model)
    found = {name: depths[id(p)] for name, p in model.named_parameters() if name.endswith("weight")}
    assert found == {
        "stem.weight": 0,
        "stages.0.0.norm.weight": 1,
        "stages.0.0.linear.weight": 1,
        "stages.1.0.weight": 2,
        "stages.1.1.weight": 2,
        "end.weight": 2,
    }


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_decay\.image: Segmentor has no encoder\.image\. .* vision, text"):
        rates_of(Segmentor(SWIN, BERT), dict(layer_decay=dict(image=0.5)))
    for role in ("vision", "text"):
        with pytest.raises(ConfigError, match=rf"layer_decay\.{role}: Model has no encoder\.{role}"):
            rates_of(Model(), dict(layer_decay={role: 0.5}))


def test_rate_of_encoders_needs_encoders() -> None:
    """The model above has an encoder, but neither an image nor a text encoder in it."""
    with DefaultScope.overwrite_default_scope("refseg"):
        build = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type="EncoderRatesConstructor",
                optim_wrapper_cfg=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3)),
                paramwise_cfg=dict(encoder_lr_mult=0.1),
            )
        )
        with pytest.raises(ConfigError, match=r"encoder_lr_mult: Model has neither encoder\.vision"):
            build(Model())
