"""The small convolutional encoder, and its stage API."""

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.encoders.conv import ConvEncoder
from refseg.models.layers import waves


def test_stages_halve_the_resolution() -> None:
    encoder = ConvEncoder(dims=(4, 6, 8, 10), stride=2).eval()
    assert encoder.strides == (2, 4, 8, 16)
    places, size = encoder.embed(torch.randn(2, 3, 32, 48))
    shapes = []
    for stage in range(encoder.num_stages):
        places = encoder.run_stage(stage, places, size)
        shapes.append((tuple(encoder.norm(stage, places).shape), size))
        if stage < 3:
            places, size = encoder.downsample(stage, places, size)
    assert shapes == [
        ((2, 384, 4), (16, 24)),
        ((2, 96, 6), (8, 12)),
        ((2, 24, 8), (4, 6)),
        ((2, 6, 10), (2, 3)),
    ]


def test_waves_by_hand() -> None:
    """At x = 1/2: angles of a quarter, a half, one and two turns of pi: sines 1, 0, 0, 0, cosines 0, -1, 1, 1."""
    values = waves(torch.tensor([[0.5, 0.0]]))
    wanted = [1.0, 0, 0, 0, 0, -1, 1, 1] + [0.0] * 4 + [1.0] * 4
    torch.testing.assert_close(values, torch.tensor([wanted]), atol=1e-6, rtol=0)


def test_pixels_of_a_blank_image_differ() -> None:
    """Two places far from the border, which zero padding does not reach."""
    encoder = ConvEncoder(dims=(4, 4, 4, 4), stride=2).eval()
    places, size = encoder.embed(torch.zeros(1, 3, 64, 64))
    grid = encoder.run_stage(0, places, size).unflatten(1, size)[0]
    assert not torch.allclose(grid[10, 10], grid[20, 20])


def test_unused_last_stages_still_run() -> None:
    encoder = ConvEncoder(dims=(4, 4, 4, 4), out_stages=(0, 1)).eval()
    places, size = encoder.embed(torch.zeros(1, 3, 32, 32))
    for stage in range(3):
        places, size = encoder.downsample(stage, encoder.run_stage(stage, places, size), size)
    assert encoder.run_stage(3, places, size).shape == (1, 4, 4)


def test_invalid_stages_raise() -> None:
    with pytest.raises(ConfigError, match="dims"):
        ConvEncoder(dims=(4, 4), depths=(1, 1, 1))
    with pytest.raises(ConfigError, match="out_stages"):
        ConvEncoder(dims=(4, 4), depths=(1, 1), out_stages=(0, 2))
