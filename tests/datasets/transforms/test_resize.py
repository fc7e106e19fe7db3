from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.datasets.transforms import RandomCrop, Resize, ScaleJitter
from refseg.datasets.transforms.geometric import fit_inside
from refseg.errors import ConfigError
from transform_states import make_state

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_fit_inside() -> None:
    """48 x 64 into 24 x 24: the scale is 24 / 64 = 0.375, which gives 18 rows. A line keeps one pixel of width."""
    assert fit_inside((48, 64), (24, 24)) == (18, 24)
    assert fit_inside((48, 64), (100, 80)) == (60, 80)
    assert fit_inside((1, 1000), (10, 10)) == (1, 10)


def test_resize_modes() -> None:
    squashed = Resize(size=(24, 24))(make_state(NOISE))
    assert squashed.size == (24, 24) and squashed.matrix.tolist() == [[0.375, 0, 0], [0, 0.5, 0], [0, 0, 1]]
    assert Resize(size=(24, 24), mode="keep")(make_state(NOISE)).size == (18, 24)


def test_same_size_returns_the_same_image() -> None:
    assert Resize(size=(48, 64))(make_state(NOISE)).image is NOISE


@pytest.mark.parametrize("size", [(20, 30), (90, 100), (48, 20)])
def test_antialiasing_equals_pillow_bilinear(size: tuple[int, int]) -> None:
    state = Resize(size=size, antialias=True)(make_state(NOISE))
    expected = Image.fromarray(NOISE).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(state.image, np.asarray(expected))


def test_antialiasing_removes_noise_when_shrinking() -> None:
    plain = Resize(size=(12, 16))(make_state(NOISE)).image
    smooth = Resize(size=(12, 16), antialias=True)(make_state(NOISE)).image
    assert plain.std() > 1.5 * smooth.std()


def test_scale_jitter() -> None:
    """`size` is 32 x 32. At scale 0.5 the image of 48 x 64 is fitted into 16 x 16: 12 x 16, without padding.

    At scale 2 it is fitted into 64 x 64: 48 x 64, from which 32 x 32 are cropped.
    """
    small = ScaleJitter(size=(32, 32), scale=(0.5, 0.5))(make_state(NOISE))
    assert small.size == (12, 16) and small.matrix[0, 0] == 0.25
    large = ScaleJitter(size=(32, 32), scale=(2, 2))(make_state(NOISE))
    left, top = (-large.matrix[:2, 2]).astype(int)
    assert np.array_equal(large.image, NOISE[top : top + 32, left : left + 32])


def test_scale_jitter_draws_scales_and_positions() -> None:
    jitter = ScaleJitter(size=(32, 32))
    states = [jitter(make_state(NOISE, seed=seed)) for seed in range(100)]
    scales = [state.matrix[0, 0] * 2 for state in states]  # at scale 1 the image is fitted into 32 x 32: halved
    assert 0.29 < min(scales) < 0.45 and 1.25 < max(scales) <= 1.42
    assert len({tuple(state.matrix[:2, 2]) for state in states}) > 10


def test_size_as_one_number() -> None:
    assert Resize(size=24)(make_state(NOISE)).size == (24, 24)
    assert Resize(size=np.int64(24), mode="keep")(make_state(NOISE)).size == (18, 24)
    assert ScaleJitter(size=32, scale=(2, 2))(make_state(NOISE)).size == (32, 32)
    assert RandomCrop(size=16)(make_state(NOISE)).size == (16, 16)


@pytest.mark.parametrize("size", ["24", None, 24.5, True, (24,), (24, 24, 3), (24, "24"), (24.0, 24), -1, (0, 4), {}])
def test_invalid_sizes(size: Any) -> None:
    for make in (Resize, ScaleJitter):
        with pytest.raises(ConfigError, match=rf"{make.__name__}\.size must be \(height, width\), or one number"):
            make(size=size)


def test_invalid_mode() -> None:
    with pytest.raises(ValueError, match=r"Unknown Resize\.mode 'stretch'\. Valid values: squash, keep"):
        Resize(size=(4, 4), mode="stretch")
