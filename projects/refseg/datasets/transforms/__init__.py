"""Transforms: record -> sample, one after the other on a typed state.

Geometry moves the image at once and is noted in the state's matrix; masks and boxes are made once, from the matrix,
when the sample is packed. All randomness comes from the state's generator.
"""

import cv2

from refseg.datasets.images import read_image
from refseg.datasets.transforms.crop import RandomCrop, ScaleJitter
from refseg.datasets.transforms.flip import RandomFlip
from refseg.datasets.transforms.loading import LoadImage, LoadText
from refseg.datasets.transforms.packing import PackSample
from refseg.datasets.transforms.photometric import Photometric
from refseg.datasets.transforms.resize import Resize
from refseg.datasets.transforms.rotate import RandomRotate
from refseg.datasets.transforms.state import TransformState
from refseg.datasets.transforms.words import DropArticles, TextDrop

cv2.setNumThreads(0)  # the data loader's workers are the parallelism

__all__ = [
    "DropArticles",
    "LoadImage",
    "LoadText",
    "PackSample",
    "Photometric",
    "RandomCrop",
    "RandomFlip",
    "RandomRotate",
    "Resize",
    "ScaleJitter",
    "TextDrop",
    "TransformState",
    "read_image",
]
