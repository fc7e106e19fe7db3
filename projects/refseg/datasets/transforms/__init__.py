"""Transforms turn a record into a sample, one after the other, through a `TransformState`.

Geometric transforms move the image at once and multiply the state's matrix. Masks and boxes are made once, from that
matrix, when the sample is packed. All randomness comes from the state's generator.
"""

import cv2

from refseg.datasets.transforms.geometric import RandomCrop, RandomFlip, Resize, ScaleJitter
from refseg.datasets.transforms.image import LoadImage, Photometric
from refseg.datasets.transforms.packing import PackSample
from refseg.datasets.transforms.state import TransformState
from refseg.datasets.transforms.text import LoadText, RawText

cv2.setNumThreads(0)  # the data loader's workers are the parallelism

__all__ = [
    "LoadImage",
    "LoadText",
    "RawText",
    "PackSample",
    "Photometric",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "ScaleJitter",
    "TransformState",
]
