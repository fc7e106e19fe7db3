"""Upsampling that keeps places apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refseg.models.layers import upsampler


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_upsampled_pixels_are_independent(scale: int) -> None:
    """Of 3 x 4 places the last column changes: nothing but the last `scale` columns does."""
    torch.manual_seed(0)
    module, maps = upsampler(6, 5, scale), torch.randn(2, 6, 3, 4)
    other = maps.clone()
    other[..., -1] = 9.0
    one, two = module(maps), module(other)
    assert one.shape == (2, 5, 3 * scale, 4 * scale)
    assert torch.equal(one[..., :-scale], two[..., :-scale])
    assert not torch.isclose(one[..., -scale:], two[..., -scale:]).all()


def test_upsampler_without_work_is_the_identity() -> None:
    assert isinstance(upsampler(6, 6, 1), nn.Identity)
