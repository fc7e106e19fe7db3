"""What the page does with an upload and phrases: one session of the inferencer per image, the last ones kept."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from refseg.datasets.images import decode_upright
from refseg.demo.limits import Limits, check_phrases, check_threshold, display_name, read_upload
from refseg.errors import UsageError
from refseg.inference.inferencer import ImageSession, ReferringInferencer
from refseg.inference.inputs import ImageInput
from refseg.inference.results import ImageAnswer


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that can be asked about. `full_size` (height, width): of the upload, which may have been reduced.
    `seconds` that opening it took; 0 where it was open already."""

    session: ImageSession
    full_size: tuple[int, int]
    seconds: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        return self.session.pixels.shape[0], self.session.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer, the image that it is about, and the seconds between."""

    answer: ImageAnswer
    opened: Opened
    seconds: float


class Page:
    """Opens images, and asks the model about them."""

    def __init__(self, inferencer: ReferringInferencer, limits: Limits) -> None:
        self.inferencer, self.limits = inferencer, limits
        self._kept: OrderedDict[str, Opened] = OrderedDict()

    def open(self, path: str | None, name: Any) -> Opened:
        """The image in a file. `name` is what its owner calls it. The same content is opened once, while it is kept."""
        if not path:
            raise UsageError("There is no image yet: upload one, or take an example.")
        name = display_name(name)
        content = read_upload(path, name, self.limits)
        key = hashlib.sha256(f"{name}\n".encode() + content).hexdigest()  # nobody sees what others call it
        known = self._kept.pop(key, None)
        opened = self._open(content, name) if known is None else Opened(known.session, known.full_size)
        self._kept[key] = opened
        while len(self._kept) > self.limits.kept_images:
            self._kept.popitem(last=False)
        return opened

    def _open(self, content: bytes, name: str) -> Opened:
        start = time.perf_counter()
        pixels = decode_upright(content, name)
        reduced = reduce_to(pixels, self.limits.answered_megapixels)
        session = ImageSession(self.inferencer, ImageInput(name, reduced))
        return Opened(session, (pixels.shape[0], pixels.shape[1]), time.perf_counter() - start)

    def ask(self, path: str | None, name: Any, text: Any, threshold: Any) -> Asked:
        """`text` has a phrase on each line; `threshold` is the probability from which on a pixel is mask."""
        phrases = check_phrases(text, self.limits)
        most = min(self.limits.objects, self.inferencer.postprocess.max_instances)
        changes = {"threshold": check_threshold(threshold), "max_instances": most}
        opened = self.open(path, name)
        start = time.perf_counter()
        answer = opened.session(phrases, postprocess=changes)
        return Asked(answer, opened, time.perf_counter() - start)


def reduce_to(pixels: np.ndarray, megapixels: float) -> np.ndarray:
    """An image (H, W, 3) of at most so many pixels; a smaller one as it is."""
    height, width = pixels.shape[:2]
    scale = (megapixels * 1e6 / (height * width)) ** 0.5
    if scale >= 1:
        return pixels
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
