"""The named data sets that RefShapes can generate. A new one is an entry in ``_PRESETS``; no code asks for names."""

from dataclasses import asdict, dataclass, field
from typing import Any

from refseg.datasets.refshapes.grammar import ExpressionSpec
from refseg.datasets.refshapes.scene import SceneSpec

GENERATOR_VERSION = 1  # raise it with every change that alters pixels, masks or texts of any preset

# Fixed numbers: they seed the images of a split. Never renumber; add at the end.
SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "testA": 3, "testB": 4}


@dataclass(frozen=True)
class Preset:
    """All that decides what is generated."""

    name: str
    seed: int
    image_size: tuple[int, int]  # height, width
    images: dict[str, int]  # split, one of SPLIT_IDS -> number of images
    scene: SceneSpec = field(default_factory=SceneSpec)
    expressions: ExpressionSpec = field(default_factory=ExpressionSpec)

    def identity(self) -> dict[str, Any]:
        """What a folder on disk is recognised by, as JSON values."""
        return _json_values({"preset": asdict(self), "generator_version": GENERATOR_VERSION})


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_values(part) for key, part in value.items()}
    return [_json_values(part) for part in value] if isinstance(value, tuple | list) else value


_PRESETS = (
    Preset("tiny", seed=1701, image_size=(96, 96), images={"train": 24, "val": 7, "test": 7}),
    Preset("mini", seed=2024, image_size=(96, 96), images={"train": 2400, "val": 101, "test": 101}),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


def get_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"RefShapes has no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
