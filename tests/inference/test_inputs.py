"""Images and phrases that users pass in, and error messages for invalid ones."""

from __future__ import annotations

import http.server
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from refseg.errors import DataError, UsageError
from refseg.inference.inputs import ImageInput, Loading, find_images, from_array, from_tensor, pair_phrases

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.png", "deep/c.png", ".hidden.png"):
        Image.fromarray(PIXELS).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_and_patterns(folder: Path) -> None:
    names = [str(folder / name) for name in ("a.png", "b.PNG", "deep/c.png")]
    found, several = find_images(folder)
    assert several and [one.name for one in found] == names
    assert [one.name for one in find_images(f"{folder}/**/*.png")[0]] == [names[0], names[2]]
    assert find_images(names[0])[1] is False and find_images([names[0]])[1] is True
    assert [one.name for one in find_images([names[1], PIXELS, folder / "deep"])[0]] == [names[1], "image 1", names[2]]
    odd = folder / "a[1].png"
    Image.fromarray(PIXELS).save(odd)
    assert [one.name for one in find_images(odd)[0]] == [str(odd)], "an existing file is not a pattern"


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        ("nowhere.png", DataError, "no such image, folder or pattern: nowhere.png"),
        ("nowhere/*.png", DataError, "No image in nowhere"),
        (7, UsageError, "Cannot use a int as an image"),
        (np.zeros((2, 4, 4, 3), np.uint8), UsageError, r"Pass list\(array\)"),
    ],
)
def test_invalid_images(images: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        find_images(images)


def test_unreadable_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
        find_images(str(folder))


def test_phrases() -> None:
    assert pair_phrases("a dog", 2) == [("a dog",), ("a dog",)]
    assert pair_phrases(["a", "b"], 2) == [("a", "b"), ("a", "b")]
    assert pair_phrases([["a"], ("b", "c")], 2) == [("a",), ("b", "c")]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "No phrase"),
        ([["a"], []], "image 1: there is no phrase"),
        (["a", " "], "phrase 1 is empty"),
        ([["a"], ["b"], ["c"]], "3 lists of phrases for 2 images"),
        (["a", ["b"]], "mixes phrases and lists"),
        ([["a"], [3]], "image 1: phrase 0 is a int"),
        (None, "No phrase"),
        ([["a"], 3], "image 1: texts must be a list of phrases, not 3"),
    ],
)
def test_invalid_phrases(texts: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pair_phrases(texts, 2)


def test_arrays_and_tensors() -> None:
    assert (from_array(PIXELS[..., 0], "a") == PIXELS[..., :1]).all()
    assert (from_array(PIXELS[..., :1], "a") == PIXELS[..., :1]).all()
    assert (from_tensor(torch.from_numpy(PIXELS).permute(2, 0, 1), "a") == PIXELS).all()
    assert from_tensor(torch.zeros(5, 7, dtype=torch.uint8), "a").shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (PIXELS / 255.0, "value range of a float64 array"),
        (PIXELS.astype(np.uint16), "uint16"),
        (PIXELS > 3, "bool"),
        (np.zeros((3, 6, 9), np.uint8), "move the channels to the end"),
        (np.zeros((6, 9, 2), np.uint8), r"not \(6, 9, 2\)$"),
        (np.zeros((0, 9, 3), np.uint8), "not"),
        (np.zeros(5, np.uint8), "not"),
    ],
)
def test_invalid_arrays(array: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=f"the photo: .*{says}"):
        from_array(array, "the photo")


SHAPES = array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@given(arrays(st.sampled_from(["u1", "u2", "i1", "i8", "f2", "f8", "?", "c8"]), SHAPES))
def test_random_arrays(array: np.ndarray) -> None:
    try:
        pixels = from_array(array, "the photo")
    except DataError as error:
        assert "the photo: " in str(error)
    else:
        assert array.dtype == np.uint8 and pixels.dtype == np.uint8 and pixels.shape == (*array.shape[:2], 3)


def test_invalid_tensors() -> None:
    with pytest.raises(DataError, match=r"the photo: .*permute\(2, 0, 1\)"):
        from_tensor(torch.zeros(6, 9, 3, dtype=torch.uint8), "the photo")
    with pytest.raises(DataError, match=r"value range of a torch\.float32 tensor"):
        from_tensor(torch.zeros(3, 6, 9), "the photo")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    """Photos are turned as Pillow's `exif_transpose` does, or left as stored with `upright=False`."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "photo.png")
    Image.fromarray(PIXELS).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    for source in (path, Image.open(path)):
        assert np.array_equal(ImageInput(path, source).load(Loading()), expected)
        assert np.array_equal(ImageInput(path, source).load(Loading(upright=False)), PIXELS)


@pytest.mark.parametrize("mode", ["I;16", "P", "CMYK", "LA", "1"])
def test_image_modes(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8) if mode == "I;16" else None
    image = grey or Image.fromarray(PIXELS).convert(mode)
    path = str(tmp_path / f"image.{'tiff' if mode == 'CMYK' else 'png'}")
    image.save(path)
    from_file = ImageInput(path, path).load(Loading())
    assert from_file.shape == PIXELS.shape and from_file.dtype == np.uint8
    assert np.array_equal(ImageInput(path, Image.open(path)).load(Loading()), from_file)


def test_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (ImageInput("a", str(tmp_path / "a.gif")).load(Loading())[0, 0] == (255, 0, 0)).all()


def test_truncated_pillow_image(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(PIXELS.repeat(20, 0)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as image, pytest.raises(DataError, match="truncated or corrupt: the photo"):
        ImageInput("the photo", image).load(Loading())


# URLs -----------------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(buffer, "PNG")
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(buffer.getvalue() if self.path == "/a.png" else bytes(10_000))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_urls(server: str) -> None:
    def load(path: str, **how: object) -> np.ndarray:
        (image,), _ = find_images(server + path)
        return image.load(Loading(**how))

    assert (load("/a.png", allow_url=True) == PIXELS).all()
    with pytest.raises(UsageError, match="from the network are not allowed"):
        load("/a.png")
    with pytest.raises(DataError, match="more than 5000 bytes"):
        load("/large", allow_url=True, max_url_bytes=5000)
    with pytest.raises(DataError, match=r"cannot be fetched.*404"):
        load("/none", allow_url=True)
    with pytest.raises(DataError, match="cannot be fetched"):
        load("/away", allow_url=True)


def test_slow_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is patched: every call advances it by 100 seconds."""
    looks = iter(range(0, 10_000, 100))
    monkeypatch.setattr("refseg.inference.inputs.time.monotonic", lambda: next(looks))
    with pytest.raises(DataError, match="20 s have passed"):
        ImageInput("a", f"{server}/a.png").load(Loading(allow_url=True, url_seconds=20))
