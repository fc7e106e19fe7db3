"""Colours. Geometry is untouched."""

from __future__ import annotations

import cv2
import numpy as np

from refseg.datasets.transforms.state import TransformState, check_fraction
from refseg.registry import TRANSFORMS

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green, blue


def tone_table(brightness: float, contrast: float, mean: float) -> np.ndarray:
    """(256,) uint8: values times `brightness`, then their distance from the image's `mean` grey times `contrast`."""
    bright = np.clip(np.arange(256) * brightness, 0, 255)
    centre = min(mean * brightness, 255)
    return np.clip(np.rint(centre + contrast * (bright - centre)), 0, 255).astype(np.uint8)


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """0 makes the image grey, 1 leaves it; the grey value of each pixel stays."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * GREY_WEIGHTS)


def shift_hue(image: np.ndarray, turns: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(turns * 180)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


@TRANSFORMS.register_module()
class Photometric:
    """With `chance`, changes brightness, contrast and saturation by factors from 1 - x to 1 + x; VATEX: 0.1 each.

    `hue`: shift by up to this part of the colour circle. It stays 0 unless asked for, because phrases name colours.
    """

    def __init__(
        self, *, brightness: float, contrast: float, saturation: float, hue: float = 0.0, chance: float = 1.0
    ) -> None:
        self.brightness = check_fraction(self, "brightness", brightness)
        self.contrast = check_fraction(self, "contrast", contrast)
        self.saturation = check_fraction(self, "saturation", saturation)
        self.hue = check_fraction(self, "hue", hue, at_most=0.5)
        self.chance = check_fraction(self, "chance", chance)

    def __call__(self, state: TransformState) -> TransformState:
        if state.rng.random() >= self.chance:
            return state
        changes = np.array([self.brightness, self.contrast, self.saturation])
        brightness, contrast, saturation = state.rng.uniform(1 - changes, 1 + changes)
        image = state.image
        if self.brightness or self.contrast:
            mean = float(GREY_WEIGHTS @ cv2.mean(image)[:3])
            image = cv2.LUT(image, tone_table(brightness, contrast, mean))
        if self.saturation:
            image = saturate(image, saturation)
        if self.hue:
            image = shift_hue(image, state.rng.uniform(-self.hue, self.hue))
        state.image = image
        return state
