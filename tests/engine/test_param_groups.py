"""The learning rate of parts without pretrained weights."""

from __future__ import annotations

import pytest
from mmengine.registry import DefaultScope
from torch import nn

from refseg.registry import OPTIM_WRAPPER_CONSTRUCTORS


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(dict(layer=nn.Linear(2, 2), norm=nn.LayerNorm(2)))
        self.decoder = nn.Linear(2, 2)


@pytest.mark.parametrize("paramwise", [{}, dict(new_parts_lr_mult=10.0)])
def test_new_parts_have_their_own_rate(paramwise: dict) -> None:
    """Factors of `custom_keys` still apply: here 0.5 for the decoder's bias."""
    model, factor = Model(), paramwise.get("new_parts_lr_mult", 1.0)
    paramwise["custom_keys"] = {"norm": dict(decay_mult=0.0), "decoder.bias": dict(lr_mult=0.5)}
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
    assert {name: found[id(p)] for name, p in model.named_parameters()} == {
        "encoder.layer.weight": (1e-3, 0.1),
        "encoder.layer.bias": (1e-3, 0.1),
        "encoder.norm.weight": (1e-3, 0.0),
        "encoder.norm.bias": (1e-3, 0.0),
        "decoder.weight": (1e-3 * factor, 0.1),
        "decoder.bias": (0.5e-3 * factor, 0.1),
    }
