"""The model that ships with refseg: small, trained on RefShapes, good for drawn shapes only.

Its folder holds what a work directory holds (config, weights, words), a model card, and example images.
`tools/dev/ship_model.py` writes it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from refseg.errors import CheckpointError

MODELS = Path(__file__).resolve().parent  # a folder per model
REFSHAPES = "refshapes"  # name of the model, and of its folder
WEIGHTS = "model.safetensors"
EXAMPLES = "examples.jsonl"  # images and phrases beside a model's weights, as `refseg predict --jsonl` reads them

MODEL_NOTE = (
    "the model refshapes, which ships with refseg, knows drawn shapes only. It was trained on RefShapes (colored "
    "shapes on a gray background) and has never seen a photograph"
)
IMAGE_NOTE = (
    "this does not look like an image of RefShapes (colored shapes on a gray background). The model refshapes knows "
    "nothing else, so do not trust its answer"
)

# Backgrounds of RefShapes: gray levels 111 to 150 in all presets, on at least 57 % of an image
GRAY = (96, 164)
GRAY_TOLERANCE = 10  # between the color channels
BACKGROUND_RANGE = 40  # difference from the median that still counts as background
BACKGROUND_SHARE = 0.45


class ShapesOnlyWarning(UserWarning):
    """The model that ships is used, or an image is not one that it was made for."""


def shipped_model(name: object) -> Path | None:
    """Return the folder of the model that ships under a name, or None if none does.

    Only the bare name is one: `./refshapes` is a folder of the user.

    Raises:
        CheckpointError: This copy of refseg came without the weights.
    """
    if name != REFSHAPES:
        return None
    folder = MODELS / REFSHAPES
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"this copy of refseg has no weights for the model {REFSHAPES} ({folder / WEIGHTS} is missing). Train a "
            "small model with `refseg quickstart` (8 to 13 minutes on two cores) and pass work_dirs/quickstart"
        )
    return folder


def model_note(checkpoint: Path) -> str:
    """Return what users must know about a model; empty unless it is the one that ships."""
    return MODEL_NOTE if checkpoint.resolve().parent == MODELS / REFSHAPES else ""


def image_note(pixels: np.ndarray) -> str:
    """Return a note if an image (H, W, 3) does not look like RefShapes, else an empty string.

    The pictures of RefShapes have a gray background, which reaches the border. Photographs rarely have one.
    """
    small = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX), np.int16)
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    color = np.median(border, axis=0)
    is_gray = GRAY[0] <= color.min() and color.max() <= GRAY[1] and np.ptp(color) <= GRAY_TOLERANCE
    background = np.abs(small - color).max(axis=2) <= BACKGROUND_RANGE
    return "" if is_gray and background.mean() >= BACKGROUND_SHARE else IMAGE_NOTE


def warn_shapes_only(text: str) -> None:
    """Warn at the line outside of refseg that led here, so that Python shows the warning once per such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("refseg."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, ShapesOnlyWarning, stacklevel=level)


def example_image() -> Path:
    """Return the path of a small RefShapes image that ships with refseg, to try a model on.

    It shows one red circle, several stars, and other shapes.
    """
    folder = MODELS / REFSHAPES
    first = json.loads((folder / EXAMPLES).read_text(encoding="utf-8").splitlines()[0])
    return folder / first["image"]
