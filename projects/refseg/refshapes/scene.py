"""What is in a RefShapes image: colored shapes on a background. arrange.py makes random ones.

All lengths are whole numbers of 1/16 pixel (``UNIT``) and all angles are whole steps of 3 degrees, so that a scene is
made, drawn and judged with integers only and is the same on every machine.
"""

from dataclasses import dataclass

UNIT = 16  # lengths are counted in 1/16 pixel

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
POSES = ("upright", "tilted")
VALUES = {"kind": KINDS, "color": COLORS, "size": SIZES, "texture": TEXTURES, "pose": POSES}

# Angles either way, in steps of 3 degrees. The kinds look the same again after 72 (star) or more degrees, so that from
# 18 to 24 degrees nothing is close to another upright look of its own, nor a square to a diamond.
UPRIGHT_STEPS = (0, 1)
TILTED_STEPS = (6, 8)


@dataclass(frozen=True)
class Shape:
    """One instance. ``id`` is its place in the scene and its depth: a higher id is drawn over a lower one."""

    id: int
    kind: str
    color: str
    size: str
    texture: str
    x: int  # center, 1/16 pixel from the left edge of the image
    y: int  # center, 1/16 pixel from the top edge of the image
    radius: int  # 1/16 pixel
    angle: int  # steps of 3 degrees

    @property
    def pose(self) -> str | None:
        """ "upright", "tilted", or None: circles have no pose, and angles between the two are not spoken of."""
        for pose, (low, high) in zip(POSES, (UPRIGHT_STEPS, TILTED_STEPS), strict=True):
            if low <= abs(self.angle) <= high and self.kind != "circle":
                return pose
        return None


@dataclass(frozen=True)
class Blob:
    """A soft round patch of the background, ``change`` gray levels off at its center; lengths in pixels."""

    x: int
    y: int
    radius: int
    change: int


@dataclass(frozen=True)
class Background:
    """Gray ``level`` at the center, changed by ``slope_x``/``slope_y`` gray levels from edge to edge, plus noise."""

    level: int
    slope_x: int
    slope_y: int
    noise: int  # largest change of one value, either way
    blobs: tuple[Blob, ...] = ()
    grain: int = 0  # largest change of a block of 4 x 4 pixels, either way


@dataclass(frozen=True)
class Scene:
    height: int  # pixels
    width: int  # pixels
    background: Background
    shapes: tuple[Shape, ...]

    @property
    def margin(self) -> int:
        """The least difference, in 1/16 pixel, that a word about position may rest on: 6 % of the shorter side."""
        return min(self.height, self.width) * UNIT * 6 // 100


@dataclass(frozen=True)
class SceneSpec:
    """How crowded and how varied scenes are; ranges include both ends."""

    num_shapes: tuple[int, int] = (5, 9)
    kinds_per_scene: tuple[int, int] = (2, 4)  # few kinds and colors per scene: phrases then fit several shapes
    colors_per_scene: tuple[int, int] = (2, 4)
    small_radius: tuple[int, int] = (73, 90)  # thousandths of the shorter side
    large_radius: tuple[int, int] = (132, 160)
    large_percent: int = 42
    striped_percent: int = 25
    spacing_percent: int = 84  # centers stay this part of the sum of two radii apart
    max_tilt: int = 4  # steps of 3 degrees
    noise: int = 4
    min_visible_percent: int = 60
    min_visible_pixels: int = 30
    # What is off by default draws no random numbers, so that the presets without it keep their bytes.
    tilted_percent: int = 0  # of shapes; above 0, every angle is clearly upright or clearly tilted
    inside_percent: int = 0  # of scenes with one or two small shapes on a very large one
    behind_percent: int = 0  # of scenes with a shape partly hidden by another on purpose
    container_radius: tuple[int, int] = (190, 230)
    blobs: tuple[int, int] = (0, 0)
    blob_change: int = 14
    grain: int = 0
