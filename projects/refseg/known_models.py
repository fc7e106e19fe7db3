"""Models by name: those that load published weights, the one that ships with refseg, and the user's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from refseg.paths import data_path
from refseg.shipped import REFSHAPES

OWN_MODELS = "REFSEG_MODELS"  # environment variable: a folder of work directories, which get their folder's name


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that users can call by name.

    Args:
        config: Name of its config.
        summary: One line about it.
        weights: Hub names of its weights.
        license: License of the weights.
        parameters: In millions.
        abilities: Among "instances", "nothing here", "relations", "training", "clicks".
        terms: What users must do before they can download the weights; empty if nothing.
    """

    config: str
    summary: str
    weights: tuple[str, ...]
    license: str
    parameters: int
    abilities: frozenset[str] = field(default_factory=frozenset)
    terms: str = ""


_BOXES = frozenset(("instances", "nothing here", "clicks"))
_SAM3_TERMS = (
    "gated: accept the SAM License at https://huggingface.co/facebook/sam3, wait for approval, then `hf auth login`. "
    "Publications must name SAM"
)
KNOWN_MODELS = {
    "grounded-sam2": KnownModel(
        "zero_shot/grounded_sam2_base_large",
        "Grounding DINO base finds boxes, SAM 2.1 large turns them into masks (InstAlign, section 10)",
        ("IDEA-Research/grounding-dino-base", "facebook/sam2.1-hiera-large"),
        "Apache-2.0",
        457,
        _BOXES,
    ),
    "grounded-sam2-tiny": KnownModel(
        "zero_shot/grounded_sam2_tiny_tiny",
        "Grounding DINO tiny and SAM 2.1 tiny: the smallest pair",
        ("IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-tiny"),
        "Apache-2.0",
        211,
        _BOXES,
    ),
    "mm-grounded-sam2": KnownModel(
        "zero_shot/mm_grounded_sam2_tiny_large",
        "MM Grounding DINO tiny, trained on more open data, and SAM 2.1 large",
        ("openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", "facebook/sam2.1-hiera-large"),
        "Apache-2.0",
        397,
        _BOXES,
    ),
    "owlv2-sam2": KnownModel(
        "zero_shot/owlv2_sam2_base_large",
        "OWLv2 base, good at nouns, and SAM 2.1 large",
        ("google/owlv2-base-patch16-ensemble", "facebook/sam2.1-hiera-large"),
        "Apache-2.0",
        379,
        _BOXES,
    ),
    "omdet-sam2": KnownModel(
        "zero_shot/omdet_sam2_tiny_large",
        "OmDet-Turbo tiny, the fastest detector, and SAM 2.1 large",
        ("omlab/omdet-turbo-swin-tiny-hf", "facebook/sam2.1-hiera-large"),
        "Apache-2.0",
        339,
        _BOXES,
    ),
    "sam3": KnownModel(
        "zero_shot/sam3",
        "SAM 3: all instances of a noun phrase, with a presence score",
        ("facebook/sam3",),
        "SAM License",
        840,
        frozenset(("instances", "nothing here")),
        _SAM3_TERMS,
    ),
    "sam3-litetext": KnownModel(
        "zero_shot/sam3_litetext",
        "SAM 3 with a small text encoder",
        ("yonigozlan/sam3-litetext-s0",),
        "SAM License",
        0,
        frozenset(("instances", "nothing here")),
        "Publications must name SAM",
    ),
    "clipseg": KnownModel(
        "zero_shot/clipseg",
        "CLIPSeg: one rough map per phrase, small",
        ("CIDAS/clipseg-rd64-refined",),
        "Apache-2.0",
        151,
        frozenset(("nothing here", "training")),
    ),
}


def own_models() -> dict[str, Path]:
    """Return the work directories in the folder $REFSEG_MODELS, by name."""
    root = os.environ.get(OWN_MODELS)
    if not root or not Path(root).is_dir():
        return {}
    return {folder.name: folder for folder in sorted(Path(root).iterdir()) if any(folder.glob("*.py"))}


def find_weights_of(name: str) -> Path | None:
    """Return the local folder of published weights, or None if they are not on this machine.

    It is a folder of that name, `data/weights/NAME`, or the local hub cache.
    """
    from huggingface_hub import try_to_load_from_cache

    for folder in (Path(name), data_path(f"data/weights/{Path(name).name}")):
        if (folder / "config.json").is_file():
            return folder
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else None


__all__ = ["KNOWN_MODELS", "OWN_MODELS", "REFSHAPES", "KnownModel", "find_weights_of", "own_models"]
