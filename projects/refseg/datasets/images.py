"""Read untrusted image files as (h, w, 3) RGB uint8 arrays.

OpenCV decodes JPEG and PNG files that end with their end marker. Pillow, which is slower and strict, decodes everything
else: OpenCV silently fills the missing part of a truncated JPEG with gray.

Damage in the middle of a JPEG goes unnoticed here, because libjpeg reports it on stderr only and Pillow rarely raises.
`refseg data check --images all` finds it. PNG has checksums, so damage anywhere in a PNG is an error.
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

# Formats of cameras, browsers and annotation tools. Pillow's other decoders are used less, and one starts programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
READ_SECONDS = 60.0  # storage that takes longer counts as an unreadable file
MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs

DECODES_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # OpenCV 4.11
OPENCV_FLAGS = (cv2.IMREAD_COLOR_RGB if DECODES_RGB else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# Markers of a JPEG's frame header, which holds the size: 0xC0..0xCF without the tables DHT, JPG and DAC.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# EXIF orientation -> (mirror first, then rotate). Those from 5 on rotate by 90 degrees.
ORIENTATIONS: dict[int, tuple[bool, int | None]] = {
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
    """Read an image file as (h, w, 3) RGB uint8.

    Gray is repeated, alpha is dropped, 16 bits are scaled to 8, and an animation gives its first frame. EXIF
    orientation is ignored, as in COCO's annotations, unless only the rotated image has the annotated size.

    Args:
        path: A regular file in one of `FORMATS` with at most `MAX_PIXELS` pixels.
        size: Annotated (height, width). Any other size is an error.
        timeout: Seconds to wait for the storage; None waits without limit.

    Raises:
        DataError: The file cannot be read, is damaged as far as its format can show it, or has another size.
    """
    encoded = read_bytes(path, timeout=timeout)
    image = decode_image(encoded, path)
    if size is None or image.shape[:2] == tuple(size):
        return image
    if image.shape[:2] == (size[1], size[0]):
        upright = _upright(image, encoded, path)
        if upright.shape[:2] == tuple(size):
            return upright
    raise DataError(
        f"image {path} has size {list(image.shape[:2])}, its annotation says {list(size)} (height, width). Use the "
        "image files that the annotations were made for, or correct the size in the annotations"
    )


def decode_upright(encoded: bytes, path: str) -> np.ndarray:
    """Decode an image and rotate it as EXIF says, which is how people see it."""
    return _upright(decode_image(encoded, path), encoded, path)


def from_pillow(image: Image.Image, name: str, *, upright: bool = True) -> np.ndarray:
    """Return the (h, w, 3) RGB uint8 pixels of a Pillow image, by the same rules as for files."""
    _check_num_pixels(name, (image.height, image.width))
    with decoding(name):  # Pillow decodes when pixels are requested
        pixels = _to_rgb(image, name)
    return _rotate(pixels, image) if upright else pixels


def decode_image(encoded: bytes, path: str) -> np.ndarray:
    """Decode an image as stored. `path` is used in error messages."""
    size = header_size(encoded)
    if size is not None:
        _check_num_pixels(path, size)
    if has_end_marker(encoded) and (encoded.startswith(JPEG_START) or _chunks_fit(encoded)):
        try:
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), OPENCV_FLAGS)
        except cv2.error:
            image = None
        if image is not None:
            return image if DECODES_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    with open_image(path, encoded) as image:
        return _to_rgb(image, path)


# Files ----------------------------------------------------------------------------------------------------------------


@contextmanager
def open_image(path: str, encoded: bytes | None = None) -> Iterator[Image.Image]:
    """Open an untrusted image with Pillow. Whatever a decoder raises inside the block becomes a DataError.

    Args:
        path: The file, which must be a regular one in one of `FORMATS`.
        encoded: The file's content, if it has been read already.
    """
    encoded = read_bytes(path) if encoded is None else encoded
    with decoding(path), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        _check_num_pixels(path, (image.height, image.width))
        yield image


def read_bytes(path: str, *, timeout: float | None = READ_SECONDS) -> bytes:
    """Return the content of a regular file, or raise DataError.

    A call into storage that hangs cannot be interrupted. Another thread therefore reads the file, and is left behind
    if it does not return in time.

    Args:
        path: The file.
        timeout: Seconds to wait for the storage; None waits without limit.
    """
    if timeout is None:
        result = _try_to_read(path)
    else:
        answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        try:
            requests = _idle_readers.pop()
        except IndexError:
            requests = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(requests,), name="image reader", daemon=True).start()
        requests.put((path, answer))
        try:
            result = answer.get(timeout=timeout)
        except queue.Empty:
            result = TimeoutError(f"no answer from the storage in {timeout:g} s")
    if isinstance(result, bytes):
        return result
    raise DataError(f"image cannot be read: {path} ({getattr(result, 'strerror', None) or result})")


# Request queues of idle reader threads. They are reused because starting a thread takes longer than reading a file.
_idle_readers: list[queue.SimpleQueue] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_readers.clear)  # a child process has no threads of its parent


def _serve(requests: queue.SimpleQueue) -> None:
    """Read one file after another, in a thread of its own."""
    while True:
        path, answer = requests.get()
        result = _try_to_read(path)
        _idle_readers.append(requests)
        answer.put(result)


def _try_to_read(path: str) -> bytes | Exception:
    try:
        return _read_regular_file(path)
    except Exception as error:
        return error


def _read_regular_file(path: str) -> bytes:
    """Return the content of a file. A pipe in its place raises OSError instead of blocking."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is a pipe or a device, not a file")
        return file.read()


# Decoding -------------------------------------------------------------------------------------------------------------


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into a DataError about the image `name`.

    Decoders raise nearly anything on damaged files: ValueError, RuntimeError, NotImplementedError, MemoryError, ...
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF blocks and large images
            yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"image is too large to decode: {name} ({error}). Scale the file down") from None
    except UnidentifiedImageError:
        raise DataError(
            f"image is corrupt or of an unknown format: {name}. Supported formats: {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"image is truncated or corrupt: {name} ({reason}). Get the file again") from None


def has_end_marker(encoded: bytes) -> bool:
    """Return whether a file is a JPEG or PNG with its end marker, which a few bytes may follow."""
    if encoded.startswith(JPEG_START):
        return JPEG_END in encoded[-32:]
    return encoded.startswith(PNG_START) and PNG_END in encoded[-32:]


def header_size(encoded: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of a JPEG or PNG without decoding, or None for any other file."""
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
        # A fill byte, or another segment with its length.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _chunks_fit(png: bytes) -> bool:
    """Return whether all chunks of a PNG lie in the file. OpenCV allocates the length a chunk claims, up to 4 GB."""
    at = len(PNG_START)
    while at + 12 <= len(png):  # length, kind, content and checksum
        if png[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return False


def _to_rgb(image: Image.Image, path: str) -> np.ndarray:
    """Convert a Pillow image to (h, w, 3) uint8. 16-bit values are scaled, where Pillow's conversion would clip."""
    if image.mode == "F":
        raise DataError(f"image holds floating-point values, whose range is unknown: {path}. Save it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 65536:
            raise DataError(f"image holds integers outside of 0..65535: {path}. Save it with 8 bits")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    # A palette with transparency goes through RGBA, or Pillow warns. Alpha is dropped, not blended.
    return np.array(image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB"))


def _upright(pixels: np.ndarray, encoded: bytes, path: str) -> np.ndarray:
    """Rotate the decoded pixels of a file as its EXIF orientation says."""
    try:
        with open_image(path, encoded) as image:
            return _rotate(pixels, image)
    except DataError:
        return pixels


def _rotate(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Rotate and mirror pixels as the EXIF orientation of their image says, unless the EXIF block is damaged."""
    try:
        is_mirrored, rotation = ORIENTATIONS[int(image.getexif()[EXIF_ORIENTATION])]
    except Exception:
        return pixels
    pixels = cv2.flip(pixels, 1) if is_mirrored else pixels
    return pixels if rotation is None else cv2.rotate(pixels, rotation)


def _check_num_pixels(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"image is too large to decode: {name} ({size[0]} x {size[1]} pixels, at most {MAX_PIXELS}). Scale the "
            "file down"
        )
