"""The named data sets that RefShapes can generate. A new one is an entry in ``_PRESETS``; no code asks for names."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from refseg.refshapes.grammar import ExpressionSpec
from refseg.refshapes.rules import Pair, Rule
from refseg.refshapes.scene import SceneSpec

GENERATOR_VERSION = 4  # raise it with every change that alters pixels or annotation files of any preset

# Fixed numbers: they seed the images of a split. Never renumber; add at the end.
SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "testA": 3, "testB": 4, "heldout": 5}
MOST_IMAGES = 100_000  # in one split: ids of images are counted on from multiples of it

# RefCOCO's testA is about people and its testB about all other things; here, what is referred to is of these kinds.
REFERENT_KINDS = {"testA": ("triangle", "star", "diamond"), "testB": ("circle", "square", "cross")}

# Each kind and each color but two once, so that all of them are learned, only never together.
HELD_OUT = (
    ("red", "star"),
    ("blue", "square"),
    ("green", "circle"),
    ("yellow", "triangle"),
    ("purple", "diamond"),
    ("orange", "cross"),
)


@dataclass(frozen=True)
class Preset:
    """All that decides what is generated."""

    name: str
    seed: int
    image_size: tuple[int, int]  # height, width
    images: dict[str, int]  # split, one of SPLIT_IDS -> number of images
    scene: SceneSpec = field(default_factory=SceneSpec)
    expressions: ExpressionSpec = field(default_factory=ExpressionSpec)
    train_per_image: int | None = None  # expressions per image of the split "train", in place of ``expressions``'s
    side_range: tuple[int, int] | None = None  # height and width vary in this range, in place of ``image_size``
    held_out: tuple[Pair, ...] = ()  # (color, kind) seen in the split "heldout" only

    def __post_init__(self) -> None:
        unknown = sorted(set(self.images) - set(SPLIT_IDS))
        if unknown:
            raise ValueError(f"preset {self.name!r}: no split {unknown[0]!r}; there are: {', '.join(SPLIT_IDS)}")
        if (
            max(self.images.values(), default=0) > MOST_IMAGES
            or max(self.expressions_of(split).per_image for split in ("train", "val")) > 99
        ):
            raise ValueError(f"preset {self.name!r}: more than {MOST_IMAGES} images in a split or 99 texts per image")
        if "heldout" in self.images and not self.held_out:
            raise ValueError(f"preset {self.name!r}: the split 'heldout' needs held_out pairs")

    def rule(self, split: str) -> Rule:
        """What the scenes and phrases of a split are held to."""
        distinct = self.expressions.distinct_anchors
        if split == "heldout":
            return Rule(wanted=self.held_out, distinct_anchors=distinct)
        return Rule(banned=self.held_out, kinds=REFERENT_KINDS.get(split, ()), distinct_anchors=distinct)

    def expressions_of(self, split: str) -> ExpressionSpec:
        if split == "train" and self.train_per_image is not None:
            return replace(self.expressions, per_image=self.train_per_image)
        return self.expressions

    def identity(self) -> dict[str, Any]:
        """What a folder on disk is recognized by, as JSON values."""
        return _json_values({"preset": asdict(self), "generator_version": GENERATOR_VERSION})


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):  # "colours": the spelling in meta.json is fixed, as a part of the file format
        return {key.replace("colors", "colours"): _json_values(part) for key, part in value.items()}
    return [_json_values(part) for part in value] if isinstance(value, tuple | list) else value


_ALL_SKILLS: dict[str, Any] = dict(
    distinct_anchors=True,
    single_skills={
        "attribute": 4, "size": 3, "position": 4, "relation": 7, "negation": 2,
        "pose": 3, "ordinal": 5, "nearest": 5, "inside": 7, "behind": 8,
    },
    several_skills={"group": 10, "size": 2, "position": 4, "relation": 7, "negation": 3, "pose": 3, "inside": 3},
)  # fmt: skip
_EVALUATION = {"val": 400, "test": 400, "testA": 200, "testB": 200, "heldout": 400}

_PRESETS = (
    Preset(
        "tiny",
        seed=1701,
        image_size=(96, 96),
        images={"train": 24, "val": 7, "test": 7, "testA": 4, "testB": 4},
    ),
    Preset(
        "mini",
        seed=2024,
        image_size=(96, 96),
        images={"train": 2400, "val": 101, "test": 101, "testA": 51, "testB": 51},
        train_per_image=18,
    ),
    Preset(
        "base",
        seed=3301,
        image_size=(160, 160),
        images={"train": 8000, **_EVALUATION},
        scene=SceneSpec(
            num_shapes=(6, 10),
            spacing_percent=106,
            noise=6,
            tilted_percent=40,
            inside_percent=60,
            behind_percent=75,
        ),
        expressions=ExpressionSpec(**_ALL_SKILLS),
        held_out=HELD_OUT,
    ),
    Preset(
        "hard",
        seed=4409,
        image_size=(160, 160),
        side_range=(128, 192),
        images={"train": 8000, **_EVALUATION},
        scene=SceneSpec(
            num_shapes=(9, 14),
            kinds_per_scene=(3, 5),
            colors_per_scene=(2, 4),
            small_radius=(66, 86),
            striped_percent=35,
            spacing_percent=102,
            noise=16,
            tilted_percent=40,
            inside_percent=60,
            behind_percent=80,
            container_radius=(180, 210),
            blobs=(3, 6),
            grain=9,
        ),
        expressions=ExpressionSpec(per_image=8, redundant_percent=15, **_ALL_SKILLS),
        held_out=HELD_OUT,
    ),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


def get_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"RefShapes has no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
