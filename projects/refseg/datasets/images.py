"""Image files -> (h, w, 3) RGB uint8 arrays: every kind of file that data sets hold, and none that is cut off.

JPEG and PNG files that end with their end marker are decoded by OpenCV, everything else by Pillow, which is slower and
strict: OpenCV fills the missing part of a truncated JPEG with grey and says nothing, or says it on stderr only.

Damage in the middle of a JPEG is not seen here. libjpeg goes on with what it has, and what it says on stderr cannot be
caught cheaply in processes that do other things too; Pillow raises in few of the cases. `refseg data check --images
all` catches it. PNG has checksums, so damage anywhere in one is an error here.
"""

from __future__ import annotations

import io
import os
import queue
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from refseg.errors import DataError

# What cameras, browsers and annotation tools write. Pillow's other decoders see less use, and one starts programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
READ_SECONDS = 60.0  # after which storage that does not answer counts as an unreadable file
MAX_PIXELS = 178_956_970  # where Pillow refuses too, against decompression bombs

DECODES_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # OpenCV 4.11
OPENCV_FLAGS = (cv2.IMREAD_COLOR_RGB if DECODES_RGB else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# Markers of a JPEG's frame header, which holds the size: all of 0xC0..0xCF but the tables DHT, JPG and DAC.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# EXIF orientations: mirrored first, then turned. Those from 5 on turn by 90 degrees.
TURNS: dict[int, tuple[bool, int | None]] = {
    2: (True, None),
    3: (False, cv2.ROTATE_180),
    4: (True, cv2.ROTATE_180),
    5: (True, cv2.ROTATE_90_COUNTERCLOCKWISE),
    6: (False, cv2.ROTATE_90_CLOCKWISE),
    7: (True, cv2.ROTATE_90_CLOCKWISE),
    8: (False, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
EXIF_ORIENTATION = 0x0112


def read_image(path: str, size: tuple[int, int] | None = None, *, timeout: float | None = READ_SECONDS) -> np.ndarray:
    """(h, w, 3) RGB uint8. Grey is repeated, alpha dropped, 16 bits are scaled to 8; of an animation the first frame.

    EXIF orientation is ignored as COCO's annotations do, unless the annotated `size` (height, width) is the transposed
    one: then the annotator saw the turned image, and the orientation is applied. Any other disagreement of sizes, a
    truncated file, one whose format can tell that it is corrupt, a format that is not in FORMATS, a file of more than
    MAX_PIXELS, and storage that does not answer in `timeout` seconds are DataErrors.
    """
    encoded = read_bytes(path, timeout=timeout)
    image = decode_image(encoded, path)
    if size is None or image.shape[:2] == tuple(size):
        return image
    if image.shape[:2] == (size[1], size[0]):
        turned = turn(image, _orientation(encoded))
        if turned.shape[:2] == tuple(size):
            return turned
    raise DataError(
        f"image {path} has size {list(image.shape[:2])}, its annotation says {list(size)} (height, width): use the "
        "image files that the annotations were made for, or correct the size in the annotations"
    )


def read_bytes(path: str, *, timeout: float | None = READ_SECONDS) -> bytes:
    """The content of a regular file. Storage that does not answer in `timeout` seconds is a DataError; with None, it is
    waited for.

    A call into storage that hangs cannot be interrupted. The file is therefore read by another thread, which is left
    behind until it returns.
    """
    if timeout is None:
        result = _try_to_read(path)
    else:
        try:
            reader = _idle_readers.pop()
        except IndexError:
            reader = _Reader()
        answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        reader.requests.put((path, answer))
        try:
            result = answer.get(timeout=timeout)
        except queue.Empty:
            result = TimeoutError(f"no answer from the storage in {timeout:g} s")
    if isinstance(result, bytes):
        return result
    raise DataError(f"image cannot be read: {path} ({getattr(result, 'strerror', None) or result})")


class _Reader(threading.Thread):
    """Reads one file after another. It is kept, because starting a thread takes longer than reading a file."""

    def __init__(self) -> None:
        super().__init__(name="image reader", daemon=True)
        self.requests: queue.SimpleQueue[tuple[str, queue.SimpleQueue]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            path, answer = self.requests.get()
            result = _try_to_read(path)
            _idle_readers.append(self)
            answer.put(result)


_idle_readers: list[_Reader] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_readers.clear)  # threads stay behind in the parent process


def _try_to_read(path: str) -> bytes | Exception:
    try:
        return _read_regular_file(path)
    except Exception as error:
        return error


def _read_regular_file(path: str) -> bytes:
    """Without waiting for whoever may write into a pipe that lies in place of the file."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is a pipe or a device, not a file")
        return file.read()


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as an EXIF orientation says that it is to be seen."""
    mirrored, rotation = TURNS.get(orientation, (False, None))
    image = cv2.flip(image, 1) if mirrored else image
    return image if rotation is None else cv2.rotate(image, rotation)


def decode_upright(encoded: bytes, path: str) -> np.ndarray:
    """The pixels as people see them: turned as EXIF says, whatever annotations would."""
    return turn(decode_image(encoded, path), _orientation(encoded))


def from_pillow(image: Image.Image, name: str, *, upright: bool = True) -> np.ndarray:
    """(h, w, 3) RGB uint8 of a Pillow image, by the rules of files."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.height} x {image.width} pixels")
    with decoding(name):  # Pillow decodes when it is asked for pixels
        pixels = _to_rgb(image, name)
    return turn(pixels, _orientation_of(image)) if upright else pixels


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises within is a DataError about the image `name`. Decoders that meet a damaged file raise
    nearly everything: ValueError, RuntimeError, NotImplementedError, IndexError, MemoryError, ..."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF blocks and large images; errors remain
            yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from None
    except UnidentifiedImageError:
        raise DataError(
            f"image is corrupt or of an unknown format: {name}. Formats that are read: {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        said = str(error) or type(error).__name__
        raise DataError(f"image is truncated or corrupt: {name} ({said}). Get the file again") from None


def decode_image(encoded: bytes, path: str) -> np.ndarray:
    """The pixels as stored; `path` is for error messages."""
    size = header_size(encoded)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path, f"{size[0]} x {size[1]} pixels")
    if ends_as_it_should(encoded) and (encoded.startswith(JPEG_START) or _chunks_fit(encoded)):
        try:
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), OPENCV_FLAGS)
        except cv2.error:
            image = None
        if image is not None:
            return image if DECODES_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return _decode_strictly(encoded, path)


def ends_as_it_should(encoded: bytes) -> bool:
    """A JPEG or PNG with its end marker; a few bytes may follow it."""
    if encoded.startswith(JPEG_START):
        return JPEG_END in encoded[-32:]
    return encoded.startswith(PNG_START) and PNG_END in encoded[-32:]


def _chunks_fit(png: bytes) -> bool:
    """Whether all chunks of a PNG lie within the file. OpenCV allocates the length that a chunk claims, up to 4 GB."""
    at = len(PNG_START)
    while at + 12 <= len(png):  # length, kind, content and checksum
        if png[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return False


def header_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG or PNG announces, without decoding (microseconds); None where it cannot be told."""
    if encoded.startswith(PNG_START) and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        return height, width
    if not encoded.startswith(JPEG_START):
        return None
    at = 2
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in FRAME_MARKERS:
            return struct.unpack(">HH", encoded[at + 5 : at + 9])
        if marker == 0xFF:  # a fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _decode_strictly(encoded: bytes, path: str) -> np.ndarray:
    with decoding(path), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(path, f"{image.height} x {image.width} pixels")
        return _to_rgb(image, path)


def _to_rgb(image: Image.Image, path: str) -> np.ndarray:
    """A Pillow image -> (h, w, 3) uint8. Pillow's own conversion clips 16-bit values at 255: they are scaled here."""
    if image.mode == "F":
        raise DataError(f"image holds floating-point values, which have no fixed range: {path}. Save it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 65536:
            raise DataError(f"image holds integers outside of 0..65535: {path}. Save it with 8 bits")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    # A palette with transparency goes through RGBA, or Pillow warns; an alpha channel is dropped, not blended.
    return np.array(image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB"))


def _orientation(encoded: bytes) -> int:
    """EXIF orientation, 1 (upright) where there is none."""
    try:
        with decoding("of an orientation"), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            return _orientation_of(image)
    except DataError:
        return 1


def _orientation_of(image: Image.Image) -> int:
    """The same of an opened image. A damaged block of EXIF has none."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _too_large(path: str, what: str) -> DataError:
    return DataError(f"image is too large to decode: {path} ({what}, at most {MAX_PIXELS}). Scale the file down")
