"""Transforms of the image's pixels that move nothing: loading, and photometric augmentation."""

from __future__ import annotations

import cv2
import numpy as np

from refseg.datasets.images import READ_SECONDS, read_image
from refseg.datasets.transforms.state import TransformState, check_fraction
from refseg.errors import ConfigError
from refseg.registry import TRANSFORMS

GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # red, green, blue


@TRANSFORMS.register_module()
class LoadImage:
    """Read the image, which must have the annotated size.

    Args:
        timeout: Seconds after which storage that does not answer makes the image a bad sample (`max_bad_samples` of the
            data set limits their number). None waits without limit.
    """

    def __init__(self, timeout: float | None = READ_SECONDS) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"LoadImage: timeout must be a number of seconds above 0, or None, not {timeout!r}")
        self.timeout = timeout

    def __call__(self, state: TransformState) -> TransformState:
        state.image = read_image(state.record.image_path, state.record.size, timeout=self.timeout)
        return state


@TRANSFORMS.register_module()
class Photometric:
    """Change brightness, contrast and saturation by random factors between 1 - x and 1 + x. VATEX uses 0.1 for each.

    Args:
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest shift of the hue, as a fraction of the color circle. The default is 0 because phrases name colors.
        chance: Probability of any change.
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
            mean = float(GRAY_WEIGHTS @ cv2.mean(image)[:3])
            image = cv2.LUT(image, tone_table(brightness, contrast, mean))
        if self.saturation:
            image = saturate(image, saturation)
        if self.hue:
            image = shift_hue(image, state.rng.uniform(-self.hue, self.hue))
        state.image = image
        return state


def tone_table(brightness: float, contrast: float, mean: float) -> np.ndarray:
    """Return a (256,) uint8 table: scale by `brightness`, then scale the distance from the mean gray by `contrast`."""
    bright = np.clip(np.arange(256) * brightness, 0, 255)
    center = min(mean * brightness, 255)
    return np.clip(np.rint(center + contrast * (bright - center)), 0, 255).astype(np.uint8)


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the saturation: 0 gives a gray image, 1 changes nothing. The gray value of each pixel stays."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * GRAY_WEIGHTS)


def shift_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Shift the hue by a number of turns around the color circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(turns * 180)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
