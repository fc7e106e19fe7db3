"""Limits for untrusted users: upload size, request count, rate, and the checks of what they send."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from refseg.datasets.geometry import Size
from refseg.datasets.images import FORMATS, decoding, read_bytes
from refseg.errors import DataError, UsageError

MAX_NAME_LENGTH = 80
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
SURROGATES = re.compile(r"[\ud800-\udfff]")


class TooLargeError(DataError):
    """An image with too many bytes or pixels."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for untrusted users."""

    upload_mb: float = 20  # size of a file
    megapixels: float = 50  # size of an image
    answered_megapixels: float = 4  # images with more pixels are reduced to this size
    phrases: int = 16  # per question
    letters: int = 200  # per phrase
    objects: int = 20  # per phrase in the answer
    clicks: int = 50  # corrections of one answer
    per_minute: int = 30  # questions and clicks of one client, and also uploads
    waiting: int = 20  # requests in the queue
    kept_images: int = 8  # images whose encodings stay in memory
    kept_answers: int = 16  # answers that stay in memory for more clicks
    kept_minutes: float = 60  # how long uploads and answers stay on disk

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < math.inf:
                raise UsageError(f"the limit {field.name} must be positive, not {getattr(self, field.name)}")

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 2**20)


def check_phrases(text: Any, limits: Limits) -> tuple[str, ...]:
    """Return the distinct phrases of a text with one phrase per line."""
    if not isinstance(text, str):
        raise UsageError(f"Phrases must be text with one phrase per line, not {type(text).__name__}.")
    phrases = tuple(dict.fromkeys(phrase for line in text.splitlines() if (phrase := clean_phrase(line))))
    if not phrases:
        raise UsageError("Nothing to look for. Write at least one phrase, one per line.")
    return limited(phrases, limits)


def check_phrase_list(phrases: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Return the phrases of a list without control characters and extra spaces. Repeated phrases stay."""
    cleaned = tuple(map(clean_phrase, phrases))
    if not cleaned:
        raise UsageError("Nothing to look for. Send at least one phrase.")
    if not all(cleaned):
        raise UsageError(f"Phrase {cleaned.index('')} is empty. Write what to look for, or leave it out.")
    return limited(cleaned, limits)


def clean_phrase(text: str) -> str:
    """Return a phrase with single spaces and without control characters."""
    return " ".join(CONTROL_CHARACTERS.sub(" ", text).split())


def limited(phrases: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """Return phrases that keep the limits on their number and length, and raise UsageError for others."""
    if len(phrases) > limits.phrases:
        raise UsageError(f"Too many phrases: {len(phrases)} (limit: {limits.phrases}).")
    longest = max(phrases, key=len)
    if len(longest) > limits.letters:
        raise UsageError(
            f"This phrase has {len(longest)} characters (limit: {limits.letters}): \u201c{longest[:40]}\u2026\u201d"
        )
    if any(map(SURROGATES.search, phrases)):
        raise UsageError("A phrase has half of a surrogate pair (U+D800 to U+DFFF). Send valid Unicode text.")
    return phrases


def check_threshold(value: Any) -> float:
    """Return a threshold if it is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UsageError("The threshold must be a number between 0 and 1.")
    return float(value)


def check_mask(value: Any) -> tuple[int, int | None]:
    """Return the phrase and the instance (None: all) that a value of the page's list of masks, "3" or "3:0", names."""
    match = re.fullmatch(r"([0-9]{1,3})(?::([0-9]{1,3}))?", value) if isinstance(value, str) else None
    if match is None:
        raise UsageError("No such mask. Choose one from the list.")
    return int(match[1]), None if match[2] is None else int(match[2])


def check_click(place: Any, shown: Size, size: Size) -> tuple[int, int]:
    """Return x, y of the image's pixel under a click.

    Args:
        place: The click's x, y in pixels of the picture, as the browser sent it.
        shown: Height and width of the picture.
        size: Height and width of the image.
    """
    valid = isinstance(place, list) and len(place) == 2 and all(type(value) in (int, float) for value in place)
    if not valid or not all(0 <= value < length for value, length in zip(place, shown[::-1], strict=True)):
        raise UsageError("The click is outside of the picture.")
    x, y = (int((value + 0.5) * length / of) for value, of, length in zip(place, shown[::-1], size[::-1], strict=True))
    return min(x, size[1] - 1), min(y, size[0] - 1)


def display_name(name: Any) -> str:
    """Return the file name of an upload for messages and downloads, without folders."""
    last = os.path.basename(str(name or "").replace("\\", "/"))
    return "".join(letter for letter in last if letter.isprintable())[-MAX_NAME_LENGTH:] or "image"


def read_upload(path: str, name: str, limits: Limits) -> bytes:
    """Return the content of an image file after checking its size, format, and header. It is not decoded."""
    try:
        size = os.path.getsize(path)
    except OSError:
        raise DataError(f"{name} has been deleted, as uploads are after a while. Upload it again.") from None
    check_num_bytes(size, name, limits)
    content = read_bytes(path)
    check_header(content, name, limits)
    return content


def check_num_bytes(size: int, name: str, limits: Limits) -> None:
    """Raise TooLargeError if a file is larger than the limit."""
    if size > limits.upload_bytes:
        raise TooLargeError(f"{name} is too large: {size / 2**20:.1f} MB (limit: {limits.upload_mb:g} MB).")


def check_header(content: bytes, name: str, limits: Limits) -> None:
    """Check the format and the number of pixels of an image file by its header."""
    with decoding(name), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
    if width * height > limits.megapixels * 1e6:
        raise TooLargeError(
            f"{name} is too large: {width} x {height} = {width * height / 1e6:.1f} megapixels (limit: "
            f"{limits.megapixels:g}). Scale it down."
        )


class RateLimit:
    """Count the requests of each client in the last minute.

    Args:
        per_minute: The most requests of one client.
        clock: Returns the time in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        # Times of each client's last requests. The client of the newest request comes last.
        self.clients: dict[str, deque[float]] = {}

    def seconds_to_wait(self, client: str) -> float:
        """Count a request. If the client must wait, do not count it and return the number of seconds."""
        now, clients = self.clock(), self.clients
        # Forget clients without a request in the last minute
        while clients and now - next(iter(clients.values()))[-1] >= 60:
            del clients[next(iter(clients))]
        times = clients.get(client, deque(maxlen=self.per_minute))
        if len(times) == self.per_minute and now - times[0] < 60:
            return 60 - (now - times[0])
        times.append(now)
        clients.pop(client, None)
        clients[client] = times
        return 0.0

    def refusal(self, client: str) -> str:
        """Count a request and return an empty text, or a sentence that asks the client to wait."""
        wait = self.seconds_to_wait(client)
        limit = f"limit: {self.per_minute} per minute"
        return f"Too many requests ({limit}). Try again in {math.ceil(wait)} s." if wait > 0 else ""


def delete_old_files(folder: Path, seconds: float, keep: Collection[Path] = ()) -> list[Path]:
    """Delete and return the files below a folder that are older than some seconds, and delete empty folders."""
    deleted = []
    newest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # the content of a folder comes before the folder
        try:
            status = path.lstat()
            if path in keep or status.st_ctime > newest:
                continue
            if stat.S_ISDIR(status.st_mode):
                path.rmdir()
            else:
                path.unlink()
                deleted.append(path)
        except OSError:  # already deleted, or a folder that is not empty
            continue
    return deleted
