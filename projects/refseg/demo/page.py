"""Images and phrases of the web page: one inferencer session per image. The most recent sessions are kept."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from refseg.datasets.images import decode_upright
from refseg.demo.limits import Limits, check_phrases, check_threshold, display_name, read_upload
from refseg.errors import UsageError
from refseg.inference.clicks import Clicks
from refseg.inference.inferencer import ImageSession, ReferringInferencer
from refseg.inference.inputs import ImageInput
from refseg.inference.results import ImageAnswer


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that is ready for questions."""

    key: str  # name and content of the file, hashed
    session: ImageSession
    full_size: tuple[int, int]  # height and width of the upload, which may be larger than the image of the session
    seconds: float = 0.0  # time to open the image, or 0 if it was already open

    @property
    def size(self) -> tuple[int, int]:
        return self.session.pixels.shape[0], self.session.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Correction:
    """Clicks on one mask of an answer."""

    phrase: int
    instance: int | None  # number of the shown object, or None for the merged mask
    clicks: Clicks


@dataclass(frozen=True, slots=True)
class Question:
    """An image, phrases, and corrections of the answer, in order."""

    path: str | None  # the uploaded file
    name: Any  # the user's name for it
    text: Any  # phrases, one per line
    threshold: Any
    corrections: tuple[Correction, ...] = ()
    corner: tuple[int, int] | None = None  # the first corner of a box that is not complete


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
        self._answers: OrderedDict[Any, ImageAnswer] = OrderedDict()  # for more clicks; the last used one comes last
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
            opened = Opened(key, known.session, known.full_size)
        else:
            start = time.perf_counter()
            pixels = decode_upright(content, name)
            reduced = reduce_to(pixels, self.limits.answered_megapixels)
            session = ImageSession(self.inferencer, ImageInput(name, reduced))
            opened = Opened(key, session, (pixels.shape[0], pixels.shape[1]), time.perf_counter() - start)
        self._sessions[key] = opened
        while len(self._sessions) > self.limits.kept_images:
            self._sessions.popitem(last=False)
        return opened

    @property
    def can_correct(self) -> bool:
        """Whether the page offers to correct answers by clicks."""
        return self.inferencer.prompted is not None

    def ask(self, question: Question) -> Asked:
        """Segment what phrases refer to, and correct the answer."""
        phrases = check_phrases(question.text, self.limits)
        threshold = check_threshold(question.threshold)
        if len(question.corrections) > self.limits.clicks:
            raise UsageError(f"Too many clicks (limit: {self.limits.clicks}). Undo some, or ask again.")
        opened = self.open(question.path, question.name)
        start = time.perf_counter()
        answer = self._answer(opened, phrases, threshold, question.corrections)
        return Asked(answer, opened, time.perf_counter() - start)

    def _answer(
        self, opened: Opened, phrases: tuple[str, ...], threshold: float, corrections: tuple[Correction, ...]
    ) -> ImageAnswer:
        """Answer, and make the corrections one after another.

        The last answers are kept if clicks are possible. Then one more click is one correction, and undoing it is none.
        """
        key = opened.key, phrases, threshold, corrections
        answer = self._answers.pop(key, None)
        if answer is None and not corrections:
            max_instances = min(self.limits.objects, self.inferencer.postprocess.max_instances)
            options = {"threshold": threshold, "max_instances": max_instances}
            answer = opened.session(phrases, postprocess=options)
        elif answer is None:
            before, last = self._answer(opened, phrases, threshold, corrections[:-1]), corrections[-1]
            if last.phrase >= len(before):
                raise UsageError("No such mask. Choose one from the list.")
            clicks = last.clicks
            refined = opened.session.refine(
                before[last.phrase], points=clicks.points, box=clicks.box, instance=last.instance
            )
            changed = tuple(refined[0] if k == last.phrase else phrase for k, phrase in enumerate(before))
            answer = replace(before, phrases=changed, seconds=refined.seconds)
        if self.can_correct:
            self._answers[key] = answer
        while len(self._answers) > self.limits.kept_answers:
            self._answers.popitem(last=False)
        return answer


def reduce_to(pixels: np.ndarray, megapixels: float) -> np.ndarray:
    """Scale an image (H, W, 3) down to a number of megapixels. Smaller images are returned unchanged."""
    height, width = pixels.shape[:2]
    scale = (megapixels * 1e6 / (height * width)) ** 0.5
    if scale >= 1:
        return pixels
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
