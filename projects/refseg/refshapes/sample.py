"""One image of a preset with its expressions, as values; nothing is written here.

Each image has random streams of its own (preset seed, split, index), one for each purpose, so that a change of the
grammar leaves the pictures alone and the long sentences leave the short ones alone.
"""

from dataclasses import dataclass

import numpy as np

from refseg.refshapes.draw import drop_hidden, render
from refseg.refshapes.grammar import GroundedExpression, make_expressions
from refseg.refshapes.placement import random_scene
from refseg.refshapes.presets import MOST_IMAGES, SPLIT_IDS, Preset
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Scene

# Never renumber; add at the end.
LAYOUT, PIXELS, WORDS, SIZE, LONG_WORDS, NEGATIVES = range(6)


@dataclass(frozen=True)
class Sample:
    """One generated image; ``pixels`` are drawn by ``draw_sample``."""

    name: str
    split: str
    index: int
    scene: Scene
    masks: np.ndarray  # (N, H, W) bool, visible parts, disjoint
    expressions: list[GroundedExpression]

    @property
    def image_id(self) -> int:
        """Unique in the data set and at least MOST_IMAGES, as are the ids made from it below 2**31."""
        return (SPLIT_IDS[self.split] + 1) * MOST_IMAGES + self.index


def stream_of(preset: Preset, split: str, index: int, purpose: int, *more: int) -> Stream:
    return Stream(preset.seed, SPLIT_IDS[split], index, purpose, *more)


def make_sample(preset: Preset, split: str, index: int) -> Sample:
    """Scene, masks and expressions of one image; a scene too poor for its expressions is replaced."""
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
            return Sample(f"{split}_{index:06d}", split, index, scene, masks, expressions)
    raise ValueError(
        f"preset {preset.name!r}: 100 scenes for image {index} of {split} gave no {spec.per_image} "
        "expressions; allow more shapes per scene or ask for fewer expressions"
    )


def draw_sample(preset: Preset, sample: Sample) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return render(sample.scene, stream_of(preset, sample.split, sample.index, PIXELS))
