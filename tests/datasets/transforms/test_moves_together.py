"""Image, masks and boxes move together.

Shapes painted into an image go through the transforms as pixels. The result is compared with the masks and boxes of the
packed sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.datasets.geometry import box_of_mask
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.transforms import (
    Photometric,
    RandomCrop,
    RandomFlip,
    Resize,
    ScaleJitter,
    TransformState,
)
from refseg.records import AnnotatedInstance, Expression, Record
from transform_states import packed

SIZE = (120, 160)
BOX = (20.0, 70.0, 50.0, 36.0)  # x, y, w, h of the rectangle
RECTANGLE = [[20.0, 70.0, 70.0, 70.0, 70.0, 106.0, 20.0, 106.0]]
TWO_PARTS = [
    [90.5, 12.0, 140.3, 20.7, 131.2, 50.1, 110.0, 40.4, 96.6, 58.8],
    [30.0, 10.0, 64.4, 14.2, 60.2, 50.5, 25.1, 44.0],
]
ANGLES = np.arange(0, 2 * np.pi, 0.2)
DISC = [np.stack([115 + 28 * np.cos(ANGLES), 85 + 28 * np.sin(ANGLES)], 1).ravel().tolist()]
PAINTED = [RECTANGLE, TWO_PARTS, DISC]  # red, green and blue


def painted_state(seed: int) -> TransformState:
    """Return an image of the shapes, with an expression for each. The disc is an RLE, the others are polygons."""
    image = np.stack([decode(to_rle(shape, SIZE)) for shape in PAINTED], -1).astype(np.uint8) * 255
    instances = [
        AnnotatedInstance("rectangle", RECTANGLE, None, BOX),
        AnnotatedInstance("two parts", TWO_PARTS),
        AnnotatedInstance("disc", to_rle(DISC, SIZE)),
    ]
    expressions = [Expression(str(i), "the left one", (i,)) for i in range(3)]
    record = Record("image", "image.png", SIZE, instances, expressions)
    return TransformState(record, list(expressions), np.random.default_rng(seed), image=image)


GEOMETRIC: dict[str, Callable[[], object]] = {
    "squash": lambda: Resize(size=(150, 110)),
    "keep": lambda: Resize(size=(140, 140), mode="keep"),
    "antialias": lambda: Resize(size=(100, 100), antialias=True),
    "jitter": lambda: ScaleJitter(size=(110, 110), scale=(0.6, 1.9)),
    "crop": lambda: RandomCrop(fraction=(0.5, 0.95)),
    "crop size": lambda: RandomCrop(size=(90, 100)),
    "flip": lambda: RandomFlip(chance=1),
}


def singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix[:2, :2], compute_uv=False)


def check_chain(names: list[str], seed: int, masks_at: str) -> None:
    """Compare masks and boxes with the painted shapes after these transforms.

    The edge of a painted shape is off by up to one pixel of the coarsest image that it went through. Mask and paint may
    differ within that distance of an edge of the shape or of the image, and nowhere else.
    """
    state = painted_state(seed)
    finest = 1.0
    for name in names:
        state = GEOMETRIC[name]()(state)
        finest = min(finest, singular_values(state.matrix).min())
    slack = 1 + math.ceil(singular_values(state.matrix).max() / finest)
    sample = packed(state, masks_at=masks_at)
    assert sample.instance_masks.shape[1:] == sample.image.shape[1:] == sample.meta.content_size
    assert sample.instance_masks.any(-1).any(-1).all() and sample.referents.any(1).all()
    kernel = np.ones((2 * slack + 1, 2 * slack + 1), np.uint8)
    inner = cv2.erode(
        np.ones(sample.meta.content_size, np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0
    ).astype(bool)
    for row in range(len(sample.instance_masks)):
        painted = (sample.image[row].numpy() > 127).astype(np.uint8)
        mask = sample.instance_masks[row].numpy()
        grown, shrunk = cv2.dilate(painted, kernel), cv2.erode(painted, kernel)
        assert not (mask & ~grown.astype(bool) & inner).any(), "mask outside of the painted shape"
        assert not (shrunk.astype(bool) & ~mask & inner).any(), "painted shape outside of the mask"
        if slack <= 2 and painted.sum() > 2500:
            assert (mask & painted).sum() / (mask | painted).sum() > 0.9
        box = sample.instance_boxes[row].numpy()
        if row == 0:  # the annotated box, moved and cropped like the rectangle
            assert np.abs(box - box_of_mask(painted)).max() <= slack
        else:
            assert tuple(box) == box_of_mask(mask)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("masks_at", ["input", "original"])
def test_each_transform(name: str, masks_at: str) -> None:
    for seed in range(5):
        check_chain([name], seed, masks_at)


@given(
    st.lists(st.sampled_from(sorted(GEOMETRIC)), max_size=4),
    st.integers(0, 2**32),
    st.sampled_from(["input", "original"]),
)
@settings(deadline=None, max_examples=80)
def test_chains_of_transforms(names: list[str], seed: int, masks_at: str) -> None:
    check_chain(names, seed, masks_at)


def test_photometric_keeps_geometry() -> None:
    state = Photometric(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)(painted_state(0))
    assert np.array_equal(state.matrix, np.eye(3)) and not state.augmented_by


@pytest.mark.parametrize("name", GEOMETRIC)
def test_results_depend_on_the_generator_only(name: str) -> None:
    first, second = (GEOMETRIC[name]()(painted_state(7)) for _ in range(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.matrix, second.matrix)
    state = painted_state(7)
    assert np.array_equal(state.record.expressions[0].text, "the left one"), "the record is unchanged"
