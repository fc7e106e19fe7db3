"""A frozen encoder with a small trained one beside it."""

from __future__ import annotations

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.encoders import SideEncoder

MAIN = dict(type="TimmEncoder", name="tf_efficientnet_lite0", out_indices=(0, 1, 2, 3), frozen=True)
SIDE = dict(type="ConvEncoder", dims=(4, 8, 8, 8), depths=(1, 1, 1, 1), stride=2)


def test_maps_are_those_of_both_encoders() -> None:
    encoder = SideEncoder(main=MAIN, side=SIDE, out_stages=(0, 2)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, main, side = encoder(images), encoder.main(images), encoder.side(images)
    assert encoder.dims == (20, 32, 48, 120) and encoder.strides == (2, 4, 8, 16) and not encoder.staged
    assert [tuple(one.shape) for one in maps] == [(2, 20, 32, 48), (2, 48, 8, 12)]
    for one, left, right in zip(maps, main, side, strict=True):
        assert torch.equal(one[:, : left.shape[1]], left)
        scale = one[:, left.shape[1] :] / right
        assert torch.allclose(scale[right.abs() > 0.1], torch.tensor(encoder.side_scale), rtol=1e-4)


def test_only_the_small_one_is_trained() -> None:
    encoder = SideEncoder(main=MAIN, side=SIDE).train()
    assert not encoder.main.backbone.training and encoder.side.training
    sum(one.square().mean() for one in encoder(torch.randn(2, 3, 64, 64))).backward()
    trained = {name.split(".")[0] for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {"side"} and all(parameter.grad is not None for parameter in encoder.side.parameters())


def test_images_are_normalized_for_the_pretrained_one() -> None:
    assert SideEncoder(main=MAIN, side=SIDE).mean == (127.5,) * 3


def test_different_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"main has strides \(2, 4, 8, 16\), and side \(4, 8, 16, 32\)"):
        SideEncoder(main=MAIN, side=SIDE | dict(stride=4))
