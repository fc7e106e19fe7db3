"""Normalize user inputs (paths, folders, patterns, URLs, Pillow images, arrays, tensors) into images and phrases."""

from __future__ import annotations

import glob
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from refseg.datasets.images import MAX_PIXELS, decode_image, decode_upright, from_pillow, read_bytes
from refseg.errors import DataError, UsageError
from refseg.inference.public_hosts import public_opener

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"))
URL_STARTS = ("http://", "https://")
CHUNK = 2**16
UNNAMED = "image"  # name of an array, followed by its number in a list


@dataclass(frozen=True, slots=True)
class Loading:
    """Options for loading images.

    Args:
        upright: Turn images as their EXIF data say, so that "left" is what people see as left. False leaves them as
            stored, which is what COCO's annotations expect.
        allow_url: Whether images may come from the network.
        max_url_bytes: Most bytes of an image from the network.
        url_seconds: Most seconds to wait for an image from the network.
        private_addresses: Whether URLs may lead to this machine and its private network. Set it to False if strangers
            choose the URLs: only public addresses are then used, without the proxies of the environment.
    """

    upright: bool = True
    allow_url: bool = False
    max_url_bytes: int = 50 * 2**20
    url_seconds: float = 20.0
    private_addresses: bool = True


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A named image that is loaded when it is needed."""

    name: str
    source: Any

    def load(self, how: Loading) -> np.ndarray:
        """Return the image as (H, W, 3) RGB uint8."""
        if isinstance(self.source, np.ndarray):
            return from_array(self.source, self.name)
        if isinstance(self.source, torch.Tensor):
            return from_tensor(self.source, self.name)
        if isinstance(self.source, Image.Image):
            return from_pillow(self.source, self.name, upright=how.upright)
        encoded = fetch(self.source, how) if is_url(self.source) else read_bytes(os.fspath(self.source))
        return (decode_upright if how.upright else decode_image)(encoded, self.name)


# Images -> a list of inputs -------------------------------------------------------------------------------------------


def find_images(images: Any) -> tuple[list[ImageInput], bool]:
    """Find the images, and say whether there may be several: in a list, a folder (with subfolders) or a pattern.

    A missing image is an error at once. An image that cannot be decoded is one when it is loaded.
    """
    if isinstance(images, list | tuple):
        found = [one for part in images for one in find_images(part)[0]]
        names = [f"{UNNAMED} {k}" if one.name == UNNAMED else one.name for k, one in enumerate(found)]
        return [ImageInput(name, one.source) for name, one in zip(names, found, strict=True)], True
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim == 4:
            raise UsageError(f"An array of shape {tuple(images.shape)} is several images. Pass list(array) instead.")
        return [ImageInput(UNNAMED, images)], False
    if isinstance(images, Image.Image):
        return [ImageInput(str(getattr(images, "filename", "") or UNNAMED), images)], False
    if not isinstance(images, str | os.PathLike):
        kind = type(images).__name__
        raise UsageError(f"Cannot use a {kind} as an image. Pass a path, a URL, a Pillow image, an array or a tensor.")
    name = os.fspath(images)
    if is_url(name) or os.path.isfile(name):
        return [ImageInput(name, name)], False

    def refuse(error: OSError) -> None:  # os.walk would skip a folder that cannot be read
        raise DataError(f"{error.filename} cannot be read ({error.strerror})")

    if os.path.isdir(name):
        paths = [os.path.join(folder, file) for folder, _, files in os.walk(name, onerror=refuse) for file in files]
    elif glob.has_magic(name):
        paths = [path for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
    else:
        raise DataError(f"no such image, folder or pattern: {name}")
    found = [ImageInput(path, path) for path in sorted(paths) if is_image_file(path)]
    if not found:
        raise DataError(f"No image in {name}. Supported suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found, True


def is_image_file(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES and not Path(path).name.startswith(".")


def is_url(source: Any) -> bool:
    return isinstance(source, str) and source.lower().startswith(URL_STARTS)


def pair_phrases(texts: Any, num_images: int) -> list[tuple[str, ...]]:
    """Return the phrases of each image.

    A phrase or a list of phrases is for all images. A list of lists has one list for each image.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Sequence) or not len(texts):
        raise UsageError("No phrase. Pass a phrase, a list of phrases, or a list of lists (one per image) as texts.")
    if all(isinstance(text, str) for text in texts):
        return [check_phrases(texts)] * num_images
    if any(isinstance(text, str) for text in texts):
        raise UsageError(
            "texts mixes phrases and lists of phrases. Pass a list of phrases, or a list of lists (one per image)."
        )
    if len(texts) != num_images:
        raise UsageError(f"texts has {len(texts)} lists of phrases for {num_images} images")
    return [check_phrases(of_image, f"image {number}: ") for number, of_image in enumerate(texts)]


def check_phrases(texts: Any, place: str = "") -> tuple[str, ...]:
    """Check a list of phrases. Error messages begin with `place`."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UsageError(f"{place}texts must be a list of phrases, not {texts!r}")
    if not len(texts):
        raise UsageError(f"{place}there is no phrase")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"{place}phrase {number} is a {type(text).__name__}, not text")
        if not text.strip():
            raise UsageError(f"{place}phrase {number} is empty: write what to look for")
    return tuple(texts)


# Pixels ---------------------------------------------------------------------------------------------------------------


def from_array(array: np.ndarray, name: str) -> np.ndarray:
    """Convert (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA uint8 to (H, W, 3). Alpha is dropped, as in files."""
    if array.dtype != np.uint8:
        raise DataError(
            f"{name}: cannot infer the value range of a {array.dtype} array. Convert it to uint8 (0-255) first."
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        hint = "; move the channels to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise DataError(f"{name}: an array is (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, not {array.shape}{hint}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise DataError(f"{name}: {array.shape[0]} x {array.shape[1]} pixels, at most {MAX_PIXELS}. Scale it down")
    pixels = array.repeat(3, axis=2) if array.shape[2] == 1 else array[..., :3]
    return np.ascontiguousarray(pixels)


def from_tensor(tensor: torch.Tensor, name: str) -> np.ndarray:
    """Convert (H, W) or (1, 3 or 4, H, W) uint8, torchvision's layout, to (H, W, 3)."""
    if tensor.dtype != torch.uint8:
        raise DataError(
            f"{name}: cannot infer the value range of a {tensor.dtype} tensor. Convert it to uint8 (0-255) first."
        )
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        hint = "; permute(2, 0, 1) it" if tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4) else ""
        raise DataError(f"{name}: a tensor is (H, W), (3, H, W) RGB or (4, H, W) RGBA, not {tuple(tensor.shape)}{hint}")
    array = tensor.detach().cpu().numpy()
    return from_array(array if array.ndim == 2 else array.transpose(1, 2, 0), name)


def fetch(url: str, how: Loading) -> bytes:
    """Download a URL, if `how` allows it."""
    if not how.allow_url:
        raise UsageError(
            f"{url}: images from the network are not allowed. Allow them with allow_url=True or --allow-url."
        )
    # Set before the opener's own limit: a connection that the opener closes looks like the end of a file
    end = time.monotonic() + how.url_seconds
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "refseg"})
        if how.private_addresses:
            return _download(urllib.request.urlopen, request, how, end)
        with public_opener(how.url_seconds) as opener:
            return _download(opener.open, request, how, end)
    # HTTPException: an answer that is not HTTP, or a URL with control characters
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url} cannot be fetched ({error})") from None


def _download(open_url: Callable[..., Any], request: urllib.request.Request, how: Loading, end: float) -> bytes:
    """Return what a URL has, within the limits on size and time (until `end`)."""
    url = request.full_url
    content = bytearray()
    with open_url(request, timeout=how.url_seconds) as response:
        if not is_url(response.url):
            raise DataError(f"{url} leads to {response.url}, which is not a web address")
        while chunk := response.read1(CHUNK):  # `read` would wait for a whole chunk
            content += chunk
            if len(content) > how.max_url_bytes:
                raise DataError(f"{url} has more than {how.max_url_bytes} bytes (max_url_bytes)")
            if time.monotonic() > end:
                break
    if time.monotonic() > end:
        raise TimeoutError(f"{how.url_seconds:g} s have passed")
    return bytes(content)
