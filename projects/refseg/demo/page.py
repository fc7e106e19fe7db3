"""Images and phrases of the web page and the HTTP API: one session per image. The most recent ones are kept."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
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

    key: str  # hash of the file, and of its name on the web page
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


class Sessions:
    """The sessions of the most recent images, by key.

    Args:
        inferencer: The model.
        limits: `kept_images` and `kept_minutes` bound what is kept. Images larger than `answered_megapixels` are
            reduced for the model.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, inferencer: ReferringInferencer, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.inferencer, self.limits, self.clock = inferencer, limits, clock
        # The time of the last use and the session. The most recently used one comes last.
        self._kept: OrderedDict[str, tuple[float, Opened]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Opened | None:
        """Return the session of a key if it is still there."""
        self.delete_old()
        if key not in self._kept:
            return None
        opened = replace(self._kept.pop(key)[1], seconds=0.0)
        self._kept[key] = self.clock(), opened
        return opened

    def open(self, content: bytes, name: str, key: str) -> Opened:
        """Return the session of a key, or open one for the content of an image file, whose header has been checked."""
        known = self.get(key)
        if known is not None:
            return known
        start = time.perf_counter()
        pixels = decode_upright(content, name)
        reduced = reduce_to(pixels, self.limits.answered_megapixels)
        session = ImageSession(self.inferencer, ImageInput(name, reduced))
        opened = Opened(key, session, (pixels.shape[0], pixels.shape[1]), time.perf_counter() - start)
        self._kept[key] = self.clock(), opened
        while len(self._kept) > self.limits.kept_images:
            self._kept.popitem(last=False)
        return opened

    def delete_old(self) -> None:
        """Delete sessions that were not used for `kept_minutes`."""
        oldest = self.clock() - 60 * self.limits.kept_minutes
        while self._kept and next(iter(self._kept.values()))[0] <= oldest:
            self._kept.popitem(last=False)


class Page:
    """Open images and answer questions about them."""

    def __init__(self, inferencer: ReferringInferencer, limits: Limits) -> None:
        self.inferencer, self.limits = inferencer, limits
        self._answers: OrderedDict[Any, ImageAnswer] = OrderedDict()  # for more clicks; the last used one comes last
        self.sessions = Sessions(inferencer, limits)

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
        return self.sessions.open(content, name, hashlib.sha256(f"{name}\n".encode() + content).hexdigest())

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
