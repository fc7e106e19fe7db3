from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.datasets.transforms import RandomCrop, Resize, ScaleJitter, TransformState
from refseg.datasets.transforms.geometric import fit_inside
from refseg.errors import ConfigError

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_fit_inside_by_hand() -> None:
    """48 x 64 into 24 x 24: half the width would be 32, so 24 / 64 = 0.375, and 18 rows. A line keeps one pixel."""
    assert fit_inside((48, 64), (24, 24)) == (18, 24)
    assert fit_inside((48, 64), (100, 80)) == (60, 80)
    assert fit_inside((1, 1000), (10, 10)) == (1, 10)


def test_squash_and_keep(state_of: Callable[..., TransformState]) -> None:
    squashed = Resize(size=(24, 24))(state_of(NOISE))
    assert squashed.size == (24, 24) and squashed.matrix.tolist() == [[0.375, 0, 0], [0, 0.5, 0], [0, 0, 1]]
    assert Resize(size=(24, 24), mode="keep")(state_of(NOISE)).size == (18, 24)


def test_the_same_size_costs_nothing(state_of: Callable[..., TransformState]) -> None:
    assert Resize(size=(48, 64))(state_of(NOISE)).image is NOISE


@pytest.mark.parametrize("size", [(20, 30), (90, 100), (48, 20)])
def test_antialiasing_equals_pillow_bilinear(size: tuple[int, int], state_of: Callable[..., TransformState]) -> None:
    state = Resize(size=size, antialias=True)(state_of(NOISE))
    expected = Image.fromarray(NOISE).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(state.image, np.asarray(expected))


def test_without_antialiasing_shrinking_keeps_more_noise(state_of: Callable[..., TransformState]) -> None:
    plain = Resize(size=(12, 16))(state_of(NOISE)).image
    smooth = Resize(size=(12, 16), antialias=True)(state_of(NOISE)).image
    assert plain.std() > 1.5 * smooth.std()


def test_jitter_by_hand(state_of: Callable[..., TransformState]) -> None:
    """48 x 64 with `size` 32 x 32 at scale 0.5 fits into 16 x 16: 12 x 16, not padded. At scale 2 it fits into 64 x 64:
    48 x 64, of which 32 x 32 are cut out."""
    small = ScaleJitter(size=(32, 32), scale=(0.5, 0.5))(state_of(NOISE))
    assert small.size == (12, 16) and small.matrix[0, 0] == 0.25
    large = ScaleJitter(size=(32, 32), scale=(2, 2))(state_of(NOISE))
    left, top = (-large.matrix[:2, 2]).astype(int)
    assert np.array_equal(large.image, NOISE[top : top + 32, left : left + 32])


def test_jitter_draws_scales_and_places(state_of: Callable[..., TransformState]) -> None:
    jitter = ScaleJitter(size=(32, 32))
    states = [jitter(state_of(NOISE, seed=seed)) for seed in range(100)]
    scales = [state.matrix[0, 0] * 2 for state in states]  # at scale 1 the image is fitted into 32 x 32: halved
    assert 0.29 < min(scales) < 0.45 and 1.25 < max(scales) <= 1.42
    assert len({tuple(state.matrix[:2, 2]) for state in states}) > 10


def test_one_number_is_a_square(state_of: Callable[..., TransformState]) -> None:
    assert Resize(size=24)(state_of(NOISE)).size == (24, 24)
    assert Resize(size=np.int64(24), mode="keep")(state_of(NOISE)).size == (18, 24)
    assert ScaleJitter(size=32, scale=(2, 2))(state_of(NOISE)).size == (32, 32)
    assert RandomCrop(size=16)(state_of(NOISE)).size == (16, 16)


@pytest.mark.parametrize("size", ["24", None, 24.5, True, (24,), (24, 24, 3), (24, "24"), (24.0, 24), -1, (0, 4), {}])
def test_invalid_sizes(size: Any) -> None:
    for make in (Resize, ScaleJitter):
        with pytest.raises(ConfigError, match=rf"{make.__name__}\.size must be \(height, width\), or one number"):
            make(size=size)


def test_bad_mode() -> None:
    with pytest.raises(ValueError, match=r"Resize\.mode must be 'squash' or 'keep', not 'stretch'"):
        Resize(size=(4, 4), mode="stretch")
