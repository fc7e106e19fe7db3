"""Images and phrases of the web page: one inferencer session per image. The most recent sessions are kept."""

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
    """An image that is ready for questions."""

    session: ImageSession
    full_size: tuple[int, int]  # height and width of the upload, which may be larger than the image of the session
    seconds: float = 0.0  # time to open the image, or 0 if it was already open

    @property
    def size(self) -> tuple[int, int]:
        return self.session.pixels.shape[0], self.session.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer, its image, and the time that the answer took."""

    answer: ImageAnswer
    opened: Opened
    seconds: float


class Page:
    """Open images and answer questions about them."""

    def __init__(self, inferencer: ReferringInferencer, limits: Limits) -> None:
        self.inferencer, self.limits = inferencer, limits
        self._sessions: OrderedDict[str, Opened] = OrderedDict()  # the most recently used one comes last

    def open(self, path: str | None, name: Any) -> Opened:
        """Open an uploaded image, or return its session if there is one.

        Args:
            path: The uploaded file.
            name: The user's name for it.
        """
        if not path:
            raise UsageError("No image. Upload one, or choose an example.")
        name = display_name(name)
        content = read_upload(path, name, self.limits)
        # The name is part of the key, so that users never see each other's names for the same image.
        key = hashlib.sha256(f"{name}\n".encode() + content).hexdigest()
        known = self._sessions.pop(key, None)
        if known is not None:
            opened = Opened(known.session, known.full_size)
        else:
            start = time.perf_counter()
            pixels = decode_upright(content, name)
            reduced = reduce_to(pixels, self.limits.answered_megapixels)
            session = ImageSession(self.inferencer, ImageInput(name, reduced))
            opened = Opened(session, (pixels.shape[0], pixels.shape[1]), time.perf_counter() - start)
        self._sessions[key] = opened
        while len(self._sessions) > self.limits.kept_images:
            self._sessions.popitem(last=False)
        return opened

    def ask(self, path: str | None, name: Any, text: Any, threshold: Any) -> Asked:
        """Segment what phrases refer to.

        Args:
            path: The uploaded file.
            name: The user's name for it.
            text: Phrases, one per line.
            threshold: Probability above which a pixel belongs to the mask.
        """
        phrases = check_phrases(text, self.limits)
        max_instances = min(self.limits.objects, self.inferencer.postprocess.max_instances)
        options = {"threshold": check_threshold(threshold), "max_instances": max_instances}
        opened = self.open(path, name)
        start = time.perf_counter()
        answer = opened.session(phrases, postprocess=options)
        return Asked(answer, opened, time.perf_counter() - start)


def reduce_to(pixels: np.ndarray, megapixels: float) -> np.ndarray:
    """Scale an image (H, W, 3) down to a number of megapixels. Smaller images are returned unchanged."""
    height, width = pixels.shape[:2]
    scale = (megapixels * 1e6 / (height * width)) ** 0.5
    if scale >= 1:
        return pixels
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
