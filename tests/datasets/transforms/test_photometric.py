from __future__ import annotations

import cv2
import numpy as np
import pytest

from refseg.datasets.transforms import Photometric
from refseg.datasets.transforms.image import saturate, shift_hue, tone_table
from transform_states import make_state

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_tone_table() -> None:
    """Brightness 1.5: 100 -> 150, 200 -> 300, clipped. Contrast 0.5 about a mean of 100: 60 -> 80, 180 -> 140."""
    assert tone_table(1.0, 1.0, 128.0).tolist() == list(range(256))
    assert tone_table(1.5, 1.0, 100.0)[[100, 200]].tolist() == [150, 255]
    assert tone_table(1.0, 0.5, 100.0)[[60, 180]].tolist() == [80, 140]
    assert tone_table(2.0, 0.0, 60.0)[[0, 255]].tolist() == [120, 120]


def test_saturate() -> None:
    gray = cv2.cvtColor(NOISE, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(saturate(NOISE, 1.0), NOISE)
    assert np.abs(saturate(NOISE, 0.0).astype(int) - gray[..., None]).max() <= 1
    less = saturate(NOISE, 0.8)
    assert np.abs(cv2.cvtColor(less, cv2.COLOR_RGB2GRAY).astype(int) - gray).max() <= 2


def test_shift_hue() -> None:
    """A shift by a third of the color circle turns red into green."""
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    assert shift_hue(red, 1 / 3).tolist() == [[[0, 200, 0]]]
    assert shift_hue(red, -1 / 3).tolist() == [[[0, 0, 200]]]


def test_dominant_channel_is_unchanged() -> None:
    """Without a hue shift the largest channel of a color stays the largest, so its name stays true."""
    image = np.array([[[200, 30, 30], [30, 200, 30], [30, 30, 200]]], np.uint8)
    transform = Photometric(brightness=0.4, contrast=0.4, saturation=0.4)
    for seed in range(30):
        changed = transform(make_state(image, seed=seed)).image
        assert changed.dtype == np.uint8 and changed[0].argmax(-1).tolist() == [0, 1, 2]
    assert image[0, 0, 0] == 200, "the input image is unchanged"


def test_chance_and_zero_changes() -> None:
    nothing = Photometric(brightness=0, contrast=0, saturation=0)
    assert nothing(make_state(NOISE)).image is NOISE
    strong = Photometric(brightness=0.5, contrast=0.5, saturation=0.5, chance=0.25)
    changed = sum(strong(make_state(NOISE, seed=seed)).image is not NOISE for seed in range(200))
    assert 30 < changed < 70


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"Photometric\.contrast"):
        Photometric(brightness=0, contrast=1.5, saturation=0)
    with pytest.raises(ValueError, match=r"Photometric\.hue"):
        Photometric(brightness=0, contrast=0, saturation=0, hue=0.6)
