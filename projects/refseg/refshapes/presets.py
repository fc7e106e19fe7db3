"""The named data sets that RefShapes can generate, and the images of a data set as values.

To add a preset, add an entry to ``_PRESETS``. No other code depends on the names.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from refseg.refshapes.draw import drop_hidden, render
from refseg.refshapes.grammar import ExpressionSpec, GroundedExpression, make_expressions
from refseg.refshapes.meaning import Pair, Rule
from refseg.refshapes.placement import random_scene
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Scene, SceneSpec

GENERATOR_VERSION = 4  # raise it with every change that alters pixels or annotation files of any preset

# These numbers seed the images of a split. Never renumber; add at the end.
SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "testA": 3, "testB": 4, "heldout": 5}
MOST_IMAGES = 100_000  # in one split; the image ids of a split start at a multiple of this

# RefCOCO's testA refers to people and its testB to other things. Here, the two refer to these kinds of shapes.
REFERENT_KINDS = {"testA": ("triangle", "star", "diamond"), "testB": ("circle", "square", "cross")}

# Each kind and six of the colors occur once, so all of them are learned, but never together.
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
    """All settings of a data set."""

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
            raise ValueError(f"preset {self.name!r}: unknown split {unknown[0]!r}. Valid: {', '.join(SPLIT_IDS)}")
        if (
            max(self.images.values(), default=0) > MOST_IMAGES
            or max(self.expressions_of(split).per_image for split in ("train", "val")) > 99
        ):
            raise ValueError(f"preset {self.name!r}: more than {MOST_IMAGES} images in a split or 99 texts per image")
        if "heldout" in self.images and not self.held_out:
            raise ValueError(f"preset {self.name!r}: the split 'heldout' needs held_out pairs")

    def rule(self, split: str) -> Rule:
        """Return the restrictions on the scenes and phrases of a split."""
        distinct = self.expressions.distinct_anchors
        if split == "heldout":
            return Rule(wanted=self.held_out, distinct_anchors=distinct)
        return Rule(banned=self.held_out, kinds=REFERENT_KINDS.get(split, ()), distinct_anchors=distinct)

    def expressions_of(self, split: str) -> ExpressionSpec:
        if split == "train" and self.train_per_image is not None:
            return replace(self.expressions, per_image=self.train_per_image)
        return self.expressions

    def identity(self) -> dict[str, Any]:
        """Return the JSON values that identify a folder on disk."""
        values = json.dumps({"preset": asdict(self), "generator_version": GENERATOR_VERSION})
        return json.loads(values.replace('"colors_per_scene"', '"colours_per_scene"'))  # as the file format spells it


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


# Images of a preset ---------------------------------------------------------------------------------------------------

# Each image has its own random streams, one per purpose. A change of the grammar therefore leaves the pictures alone,
# and a change of the long sentences leaves the short ones alone. Never renumber; add at the end.
LAYOUT, PIXELS, WORDS, SIZE, LONG_WORDS, NEGATIVES = range(6)


@dataclass(frozen=True)
class GeneratedImage:
    """One image with its expressions; ``draw_image`` makes its pixels."""

    name: str
    split: str
    index: int
    scene: Scene
    masks: np.ndarray  # (N, H, W) bool, visible parts, disjoint
    expressions: list[GroundedExpression]

    @property
    def image_id(self) -> int:
        """A unique id of at least MOST_IMAGES, small enough that all ids made from it are below 2**31."""
        return (SPLIT_IDS[self.split] + 1) * MOST_IMAGES + self.index

    @property
    def file_name(self) -> str:
        return f"{self.name}.png"

    def annotation_id(self, instance: int) -> int:
        return self.image_id * 100 + instance


def stream_of(preset: Preset, split: str, index: int, purpose: int, *more: int) -> Stream:
    return Stream(preset.seed, SPLIT_IDS[split], index, purpose, *more)


def make_image(preset: Preset, split: str, index: int) -> GeneratedImage:
    """Make scene, masks, and expressions of one image; a scene that is too poor for its expressions is replaced."""
    height, width = preset.image_size
    if preset.side_range is not None:
        sides = stream_of(preset, split, index, SIZE)
        height, width = sides.between(*preset.side_range), sides.between(*preset.side_range)
    rule, spec = preset.rule(split), preset.expressions_of(split)
    for attempt in range(100):
        stream = stream_of(preset, split, index, LAYOUT, attempt)
        scene, masks = drop_hidden(random_scene(height, width, preset.scene, stream, rule), preset.scene)
        if not scene.shapes or not rule.fits(scene):
            continue
        stream = stream_of(preset, split, index, WORDS, attempt)
        expressions = make_expressions(scene, spec, stream, rule)
        if expressions is not None:
            return GeneratedImage(f"{split}_{index:06d}", split, index, scene, masks, expressions)
    raise ValueError(
        f"preset {preset.name!r}: none of 100 scenes for image {index} of {split} has {spec.per_image} expressions. "
        "Allow more shapes per scene, or ask for fewer expressions"
    )


def draw_image(preset: Preset, image: GeneratedImage) -> np.ndarray:
    """Return the pixels of an image: (H, W, 3) uint8 RGB."""
    return render(image.scene, stream_of(preset, image.split, image.index, PIXELS))
