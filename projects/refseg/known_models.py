"""Names of models: those with published weights, and the user's own. `refseg models` lists them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg.errors import DataError
from refseg.paths import data_path
from refseg.pretrained import downloads_allowed
from refseg.shipped import REFSHAPES

OWN_MODELS = "REFSEG_MODELS"  # environment variable: a folder of work directories, which get their folder's name
ABILITIES = ("instances", "nothing here", "relations", "training", "clicks")


@dataclass(frozen=True, slots=True)
class Weights:
    """Published weights.

    Args:
        parameters: Parameters of the network that refseg builds, in millions.
        license: License of the weights.
        terms: What users must do before a download or a publication; empty if nothing.
    """

    parameters: float
    license: str = "Apache-2.0"
    terms: str = ""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with published weights that users can call by name.

    Args:
        config: Name of its config, which names the weights.
        summary: One line about it.
        abilities: Some of `ABILITIES`.
        memory: Peak memory in GiB for one phrase and for eight, in float32 (tools/analysis_tools/zero_shot_table.py).
    """

    config: str
    summary: str
    abilities: tuple[str, ...]
    memory: tuple[float, float]


_ACKNOWLEDGE_SAM = "The SAM License asks publications to acknowledge SAM."
# By hub name. tools/analysis_tools/zero_shot_table.py counts the parameters; a test compares them.
WEIGHTS = {
    "IDEA-Research/grounding-dino-base": Weights(232.3),
    "IDEA-Research/grounding-dino-tiny": Weights(172.2),
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det": Weights(172.2),
    "google/owlv2-base-patch16-ensemble": Weights(155.0),
    "omlab/omdet-turbo-swin-tiny-hf": Weights(115.4),
    "facebook/sam2.1-hiera-large": Weights(216.9),
    "facebook/sam2.1-hiera-tiny": Weights(31.4),
    "facebook/sam3": Weights(
        840.4,
        "SAM License",
        "Gated: accept the SAM License at https://huggingface.co/facebook/sam3, wait for approval, then run "
        f"`hf auth login`. {_ACKNOWLEDGE_SAM}",
    ),
    "yonigozlan/sam3-litetext-s0": Weights(529.2, "SAM License", _ACKNOWLEDGE_SAM),
    "CIDAS/clipseg-rd64-refined": Weights(150.7),
}
_BOXES = ("instances", "nothing here", "clicks")
KNOWN_MODELS = {
    "grounded-sam2": KnownModel(
        "zero_shot/grounded_sam2_base_large",
        "Grounding DINO base finds boxes, SAM 2.1 large turns them into masks",
        _BOXES,
        (3.1, 12.1),
    ),
    "grounded-sam2-tiny": KnownModel(
        "zero_shot/grounded_sam2_tiny_tiny",
        "Grounding DINO tiny and SAM 2.1 tiny, the smallest pair",
        _BOXES,
        (2.2, 11.1),
    ),
    "mm-grounded-sam2": KnownModel(
        "zero_shot/mm_grounded_sam2_tiny_large",
        "MM Grounding DINO tiny, trained on more open data, and SAM 2.1 large",
        _BOXES,
        (2.9, 11.8),
    ),
    "owlv2-sam2": KnownModel(
        "zero_shot/owlv2_sam2_base_large",
        "OWLv2 base, made for nouns, and SAM 2.1 large",
        _BOXES,
        (1.8, 3.0),
    ),
    "omdet-sam2": KnownModel(
        "zero_shot/omdet_sam2_tiny_large",
        "OmDet-Turbo tiny, a real-time detector, and SAM 2.1 large",
        _BOXES,
        (1.7, 2.9),
    ),
    "sam3": KnownModel(
        "zero_shot/sam3",
        "SAM 3: all instances of a noun phrase, with a presence score",
        ("instances", "nothing here"),
        (3.9, 5.5),
    ),
    "sam3-litetext": KnownModel(
        "zero_shot/sam3_litetext",
        "SAM 3 with a small text encoder",
        ("instances", "nothing here"),
        (2.6, 4.3),
    ),
    "clipseg": KnownModel(
        "zero_shot/clipseg",
        "CLIPSeg: one coarse map per phrase; small and trainable",
        ("nothing here", "training"),
        (0.6, 0.7),
    ),
}


def own_models() -> dict[str, Path]:
    """Return the work directories and model folders in the folder $REFSEG_MODELS, by name."""
    root = os.environ.get(OWN_MODELS)
    if not root or not Path(root).is_dir():
        return {}
    folders = sorted(Path(root).iterdir())
    return {one.name: one for one in folders if any(one.glob("*.py")) or (one / "config.json").is_file()}


def suggest_model(name: str) -> str:
    """Return a sentence with the known names that are closest to an unknown one, or with the command that lists all."""
    close = difflib.get_close_matches(name, [REFSHAPES, *KNOWN_MODELS, *own_models()], n=2, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else "`refseg models` lists the names."


def weights_in(model: Mapping[str, Any]) -> list[str]:
    """Return the published weights that the `model` of a config names."""
    return [value for value in model.values() if isinstance(value, str) and value in WEIGHTS]


def places_of(name: str) -> list[Path]:
    """Return the folders in which published weights are looked for, in that order.

    They are a folder of that name, `data/weights/NAME`, and the local hub cache if it can be a name on the hub.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    places = [Path(name), data_path(f"data/weights/{Path(name).name}")]
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path
        return places
    cached = try_to_load_from_cache(name, "config.json")
    cache = Path(cached).parent if isinstance(cached, str) else Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    return [*places, cache]


def has_weights(folder: Path) -> bool:
    """Return whether a folder has the config and the tensors of a model of transformers."""
    tensors = (file for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}"))
    return (folder / "config.json").is_file() and any(tensors)


def find_weights_of(name: str) -> Path | None:
    """Return the local folder of published weights, or None if they are not on this machine.

    The first folder that exists counts, as for `load_pretrained`, even if it is incomplete.
    """
    folder = next((folder for folder in places_of(name) if folder.is_dir()), None)
    return folder if folder is not None and has_weights(folder) else None


def download_command(names: Iterable[str]) -> str:
    """Return the command that downloads weights from the hub. `.pt` files are the same weights in another format."""
    return " && ".join(f'hf download {name} --exclude "*.pt"' for name in names)


def require_weights(names: Iterable[str]) -> None:
    """Check that published weights are on this machine, or that they may be downloaded.

    Args:
        names: Folders, or names on the hub.

    Raises:
        DataError: Weights are missing. One message names all that have to be downloaded.
    """
    missing = []
    for name in names:
        if find_weights_of(name) is not None:
            continue
        named, local, *hub = places_of(name)
        folder = next((place for place in (named, local) if place.is_dir()), None)
        if folder is not None:
            raise DataError(
                f"The folder {folder} is incomplete: it has no config.json, or no *.safetensors or *.bin file. "
                "Download or copy it again."
            )
        if not hub:
            raise DataError(f"There is no folder {name}. Pass an existing folder of weights, or a name on the hub.")
        if not downloads_allowed():
            missing.append(name)
    if missing:
        folders = " and ".join(str(places_of(name)[1]) for name in missing)
        terms = [WEIGHTS[name].terms for name in missing if name in WEIGHTS and WEIGHTS[name].terms]
        message = (
            f"No weights of {' and '.join(missing)} on this machine. Run `{download_command(missing)}`, or pass "
            f"--allow-download (REFSEG_ALLOW_DOWNLOAD=1), or copy them to {folders}."
        )
        raise DataError(" ".join([message, *terms]))


__all__ = [
    "ABILITIES",
    "KNOWN_MODELS",
    "OWN_MODELS",
    "REFSHAPES",
    "WEIGHTS",
    "KnownModel",
    "Weights",
    "download_command",
    "find_weights_of",
    "has_weights",
    "own_models",
    "places_of",
    "require_weights",
    "suggest_model",
    "weights_in",
]
