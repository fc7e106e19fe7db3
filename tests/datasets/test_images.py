"""Reading of image files of all kinds: valid, damaged, and hostile."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from refseg.datasets import images
from refseg.datasets.images import decode_image, decode_upright, from_pillow, header_size, read_bytes, read_image
from refseg.datasets.masks import to_rle
from refseg.errors import DataError

# 32 x 40, smooth, so that lossy formats stay close
PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), (40, 32), interpolation=cv2.INTER_CUBIC
)
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image, form: str, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def opencv_encoded(array: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_read_exactly(form: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(PICTURE, form, **({"lossless": True} if form == "WEBP" else {})))
    assert np.array_equal(read_image(str(path)), PIXELS)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_agree_with_pillow(mode: str) -> None:
    file = encoded(PICTURE.convert(mode), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    image = decode_image(file, "x.jpg")
    assert image.shape == (32, 40, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_gray_is_repeated_and_alpha_is_dropped() -> None:
    """Transparent pixels keep the color that the file has."""
    gray = decode_image(encoded(PICTURE.convert("L"), "PNG"), "x")
    assert np.array_equal(gray, np.repeat(np.asarray(PICTURE.convert("L"))[..., None], 3, 2))
    transparent = PICTURE.copy()
    transparent.putalpha(0)
    assert np.array_equal(decode_image(encoded(transparent, "PNG"), "x"), PIXELS)
    assert np.array_equal(decode_image(encoded(transparent, "TIFF"), "x"), PIXELS)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palettes(form: str) -> None:
    few = PICTURE.quantize(16)
    assert np.array_equal(decode_image(encoded(few, form), "x"), np.asarray(few.convert("RGB")))
    assert decode_image(encoded(few, form, transparency=3), "x").shape == (32, 40, 3)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("P", (5, 4), color) for color in (0, 1)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 200, 210, 220])
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(file, "x") == (10, 20, 30)).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_are_scaled_not_clipped(suffix: str) -> None:
    """256 k + 17 becomes k. Pillow's conversion clips, which would turn nearly all values into 255."""
    values = (np.arange(256, dtype=np.uint16) * 256 + 17).reshape(16, 16)
    image = decode_image(opencv_encoded(values, suffix), "x")
    assert np.array_equal(image, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2))


def test_16_bit_colors() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    assert np.array_equal(decode_image(opencv_encoded(values, ".png"), "x"), (values >> 8)[..., ::-1])


def test_floating_point_images_are_rejected() -> None:
    with pytest.raises(DataError, match=r"floating-point values.*x\.tiff"):
        decode_image(opencv_encoded(np.zeros((4, 4), np.float32), ".tiff"), "x.tiff")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])
def test_single_pixel(form: str) -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), (255, 255, 255)), form), "x").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_files_are_detected(form: str, part: float, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    file = encoded(noise, form)
    path = tmp_path / "cut.img"
    path.write_bytes(file[: int(len(file) * part)])
    with pytest.raises(DataError, match=r"(truncated|corrupt).*cut\.img"):
        read_image(str(path))


def test_truncated_jpegs_are_not_given_to_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV may silently fill the missing part with gray."""
    monkeypatch.setattr(cv2, "imdecode", lambda *args: np.zeros((32, 40, 3), np.uint8))
    file = encoded(PICTURE, "JPEG")
    with pytest.raises(DataError, match="truncated"):
        decode_image(file[:-2], "x")
    assert not decode_image(file, "x").any(), "complete files are decoded by OpenCV"


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_bytes_after_the_end_are_accepted(form: str) -> None:
    """Cameras append previews and videos. Pillow then checks whether the image itself is complete."""
    file = encoded(PICTURE, form)
    assert np.array_equal(decode_image(file + bytes(1000), "x"), decode_image(file, "x"))


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"corrupt or of an unknown format: .*a\.png"):
        read_image(str(tmp_path / "a.png"))
    with pytest.raises(DataError, match=r"corrupt or of an unknown format: .*b\.png"):
        read_image(str(tmp_path / "b.png"))
    with pytest.raises(DataError, match=r"cannot be read: .*c\.png \(No such file"):
        read_image(str(tmp_path / "c.png"))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(str(tmp_path))


def test_damaged_png_stream() -> None:
    file = bytearray(encoded(PICTURE, "PNG"))
    file[file.index(b"IDAT") + 30] ^= 0xFF
    with pytest.raises(DataError, match="truncated or corrupt"):
        decode_image(bytes(file), "x")


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs_are_rejected_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"too large to decode: x \(20000 x 10000 pixels"):
        decode_image(png_claiming(10000, 20000), "x")
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)  # the picture has 1280
    for form in ("PNG", "JPEG", "GIF", "BMP"):
        with pytest.raises(DataError, match=r"too large to decode: x \(32 x 40"):
            decode_image(encoded(PICTURE, form), "x")


def test_header_size() -> None:
    for kwargs in ({}, {"progressive": True}, {"exif": bytes(500), "icc_profile": bytes(3000)}):
        assert header_size(encoded(PICTURE, "JPEG", **kwargs)) == (32, 40)
    assert header_size(encoded(PICTURE, "PNG")) == (32, 40)
    assert header_size(encoded(PICTURE, "BMP")) is None
    assert header_size(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_exif_orientation(orientation: int, form: str, tmp_path: Path) -> None:
    """The orientation is ignored if the annotation has the stored size, and applied if only then the sizes agree."""
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    path = tmp_path / "image"
    path.write_bytes(encoded(PICTURE, form, exif=exif))
    stored = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_image(str(path)), stored)
    assert np.array_equal(read_image(str(path), (32, 40)), stored)
    if orientation >= 5:
        turned = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.array_equal(read_image(str(path), (40, 32)), turned)
    else:
        with pytest.raises(DataError, match=r"has size \[32, 40\], its annotation says \[40, 32\]"):
            read_image(str(path), (40, 32))


def test_size_differs_from_the_annotation(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE, "PNG"))
    with pytest.raises(DataError, match=r"a\.png has size \[32, 40\], .* says \[32, 41\] .*correct the size"):
        read_image(str(path), (32, 41))


# Hostile files --------------------------------------------------------------------------------------------------------


def mutated(file: bytes, rng: np.random.Generator) -> bytes:
    """Return the file with up to eight random changes, half of them in its first 160 bytes."""
    damaged = bytearray(file)
    for _ in range(rng.integers(1, 9)):
        at = int(rng.integers(len(damaged) if rng.random() < 0.5 else min(len(damaged), 160)))
        kind = rng.integers(4)
        if kind == 0:
            damaged[at] = rng.integers(256)
        elif kind == 1:
            damaged[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            damaged[at : at + 4] = bytes(rng.choice([0, 1, 127, 128, 255], 4).tolist())
        elif len(damaged) > 60:
            del damaged[at : at + int(rng.integers(1, 9))]
    return bytes(damaged)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "DDS", "ICO", "TGA"])
def test_damaged_files_give_an_image_or_a_data_error(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode 40 damaged variants of a file. Pillow raises NotImplementedError for many DDS variants."""
    monkeypatch.setattr(images, "MAX_PIXELS", 10**6)  # so that no variant takes long
    file, rng = encoded(PICTURE, form), np.random.default_rng(1)
    outcomes = []
    for number in range(40):
        try:
            image = (decode_upright if number % 2 else decode_image)(mutated(file, rng), "x")
        except DataError as error:
            outcomes.append("x" in str(error))
        else:
            outcomes.append(image.dtype == np.uint8 and image.shape[2:] == (3,))
    assert all(outcomes)


def test_png_with_an_oversized_chunk_is_not_given_to_opencv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV would allocate the length that the chunk claims: up to 4 GB and 20 seconds for a file of 400 bytes.

    Pillow does not, and the pixels have their own checksum.
    """
    file = bytearray(encoded(PICTURE, "PNG"))
    at = file.index(b"IDAT") - 4
    file[at : at + 4] = b"\xff\xff\xff\xff"
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("OpenCV was asked"))
    assert np.array_equal(decode_image(bytes(file), "x"), PIXELS)


@pytest.mark.parametrize("form", ["DDS", "ICO", "TGA", "EPS", "JPEG2000", "AVIF"])
def test_rare_formats_are_rejected(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    with pytest.raises(DataError, match=r"unknown format: x\. Supported formats: JPEG, PNG"):
        decode_image(encoded(PICTURE, form), "x")


@pytest.mark.parametrize("error", [NotImplementedError("no such mode"), RuntimeError(), IndexError("7"), MemoryError()])
def test_any_decoder_error_is_a_data_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Image.Image, *args: object) -> Image.Image:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fails)
    expected = rf"truncated or corrupt: x \({str(error) or type(error).__name__}\)"
    with pytest.raises(DataError, match=expected):
        decode_image(encoded(PICTURE, "BMP"), "x")
    with pytest.raises(DataError, match=expected):
        from_pillow(PICTURE, "x")


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("broken"), IndexError(), struct.error()])
def test_damaged_exif_orientation_is_ignored(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Image.Image) -> Image.Exif:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", fails)
    assert np.array_equal(decode_upright(encoded(PICTURE, "PNG"), "x"), PIXELS)
    assert np.array_equal(from_pillow(PICTURE, "x"), PIXELS)


# Storage that hangs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    """Make a named pipe without a writer. Opening it for reading never returns."""
    path = str(tmp_path / "pipe.png")
    os.mkfifo(path)
    return path


def test_pipes_are_rejected_immediately(pipe: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*pipe\.png \(it is a pipe or a device, not a file\)"):
        read_image(pipe, timeout=None)
    with pytest.raises(DataError, match="a pipe or a device"):
        to_rle(pipe, (4, 4))


def waiting_open(path: str) -> bytes:
    """Read a file, or never return if it is the pipe, as storage that hangs does."""
    if path.endswith("pipe.png"):
        with open(path, "rb") as file:
            return file.read()
    return Path(path).read_bytes()


def test_hanging_storage(pipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files are read while one hangs. The threads that hung are used again once their calls return."""
    monkeypatch.setattr(images, "_read_regular_file", waiting_open)
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(DataError, match=r"pipe\.png \(no answer from the storage in 0\.1 s\)"):
            read_image(pipe, timeout=0.1)
        assert np.array_equal(read_image(str(tmp_path / "a.png")), PIXELS)
    writer = os.open(pipe, os.O_RDWR)  # both threads' calls return
    os.close(writer)
    for _ in range(20):
        assert np.array_equal(read_image(str(tmp_path / "a.png")), PIXELS)
    assert threading.active_count() <= before + 3, "at most one more thread for each file that hung"


def test_files_are_read_after_a_fork(tmp_path: Path) -> None:
    """Data-loading workers are forked and do not have the threads of their parent."""
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    read_bytes(str(tmp_path / "a.png"))
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if read_bytes(str(tmp_path / "a.png"), timeout=20) else 2)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
