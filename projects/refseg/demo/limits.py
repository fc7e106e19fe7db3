"""What the page takes from people whom nobody knows: how much, how large, how often."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from refseg.datasets.images import read_bytes
from refseg.errors import DataError, UsageError

# What browsers show, and TIFF. Pillow knows more, with decoders that see less use, and one that starts programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LONGEST_NAME = 80
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Limits:
    """`upload_mb`: of a file. `megapixels`: of an image; one of more than `answered_megapixels` is reduced to that.
    `phrases`: in a question, of `letters` each; the answer has so many `objects` of each. `per_minute`: questions, and
    uploads, of one client. `waiting`: requests in the queue. `kept_images`: whose encodings are kept. `kept_minutes`:
    for which uploads and answers are files."""

    upload_mb: float = 20
    megapixels: float = 50
    answered_megapixels: float = 4
    phrases: int = 16
    letters: int = 200
    objects: int = 20
    per_minute: int = 30
    waiting: int = 20
    kept_images: int = 8
    kept_minutes: float = 60

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < math.inf:
                raise UsageError(f"the limit {field.name} must be positive, not {getattr(self, field.name)}")

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 2**20)


def check_phrases(text: Any, limits: Limits) -> tuple[str, ...]:
    """The phrases in a text of one per line, each once."""
    if not isinstance(text, str):
        raise UsageError("phrases are text, one on each line")
    lines = (" ".join(CONTROL.sub(" ", line).split()) for line in text.splitlines())
    phrases = tuple(dict.fromkeys(line for line in lines if line))
    if not phrases:
        raise UsageError("There is no phrase yet: write what to look for, one phrase on each line.")
    if len(phrases) > limits.phrases:
        raise UsageError(f"{len(phrases)} phrases are too many at once: at most {limits.phrases}.")
    longest = max(phrases, key=len)
    if len(longest) > limits.letters:
        told = f"\u201c{longest[:40]}\u2026\u201d"
        raise UsageError(f"A phrase has {len(longest)} letters, at most {limits.letters} are allowed: {told}")
    return phrases


def check_threshold(value: Any) -> float:
    """Of what a slider of the page sends."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UsageError("The threshold is a number between 0 and 1.")
    return float(value)


def display_name(name: Any) -> str:
    """An upload's own name, without folders, for messages and files."""
    last = os.path.basename(str(name or "").replace("\\", "/"))
    return "".join(letter for letter in last if letter.isprintable())[-LONGEST_NAME:] or "image"


def read_upload(path: str, name: str, limits: Limits) -> bytes:
    """The content of an image file that may be looked at: not too large, of a known format. It is not yet decoded."""
    try:
        size = os.path.getsize(path)
    except OSError:
        raise DataError(f"{name} is no longer here: uploads are deleted after a while. Upload it again.") from None
    if size > limits.upload_bytes:
        raise DataError(f"{name} has {size / 2**20:.1f} MB, at most {limits.upload_mb:g} MB are taken.")
    content = read_bytes(path)
    check_image(content, name, limits)
    return content


def check_image(content: bytes, name: str, limits: Limits) -> None:
    """By the header alone."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise DataError(f"{name} is no image that can be read: {', '.join(FORMATS)} are taken.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is broken, or too large: {error}") from None
    if width * height > limits.megapixels * 1e6:
        raise DataError(
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} megapixels, at most {limits.megapixels:g} are "
            "taken. Scale it down."
        )


def delete_old_files(folder: Path, seconds: float, keep: Collection[Path] = ()) -> list[Path]:
    """Delete the files below a folder that are older than that, and folders that this leaves empty; the files that
    were deleted."""
    deleted = []
    newest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        try:
            status = path.lstat()
            if path in keep or status.st_ctime > newest:
                continue
            if stat.S_ISDIR(status.st_mode):
                path.rmdir()
            else:
                path.unlink()
                deleted.append(path)
        except OSError:  # it is gone already, or a folder that is not empty
            continue
    return deleted


class RateLimit:
    """At most so many requests of a client in any minute. Clients that were quiet for a minute are forgotten."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # the client of the newest request comes last

    def __len__(self) -> int:
        return len(self._times)

    def check(self, client: str) -> None:
        """Counts a request, or raises with the seconds to wait."""
        now = self._clock()
        while self._times and now - next(iter(self._times.values()))[-1] >= 60:
            self._times.popitem(last=False)
        times = self._times.setdefault(client, deque())
        while times and now - times[0] >= 60:
            times.popleft()
        if len(times) >= self.per_minute:
            wait = math.ceil(60 - (now - times[0]))
            raise UsageError(f"That was much in a short time: at most {self.per_minute} a minute. Wait {wait} s.")
        times.append(now)
        self._times.move_to_end(client)
