"""The content of a RefShapes image: colored shapes on a background. placement.py makes random scenes.

All lengths are whole numbers of 1/16 pixel (``UNIT``), and all angles are whole steps of 3 degrees. A scene is made,
drawn, and judged with integers only, so it is the same on every machine.
"""

from dataclasses import dataclass

UNIT = 16  # lengths are counted in 1/16 pixel

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
POSES = ("upright", "tilted")
VALUES = {"kind": KINDS, "color": COLORS, "size": SIZES, "texture": TEXTURES, "pose": POSES}

# Angles in both directions, in steps of 3 degrees. A kind looks the same again after 72 (star) or more degrees, so at
# 18 to 24 degrees no shape is close to another upright pose, nor a square to a diamond.
UPRIGHT_STEPS = (0, 1)
TILTED_STEPS = (6, 8)


@dataclass(frozen=True)
class Shape:
    """One instance. ``id`` is its index in the scene and its depth: a higher id is drawn over a lower one."""

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
        """ "upright", "tilted", or None for circles and for angles in between."""
        for pose, (low, high) in zip(POSES, (UPRIGHT_STEPS, TILTED_STEPS), strict=True):
            if low <= abs(self.angle) <= high and self.kind != "circle":
                return pose
        return None


@dataclass(frozen=True)
class Blob:
    """A soft round patch of the background, which adds ``change`` gray levels at its center; lengths in pixels."""

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
        """The smallest difference in position that words may rely on, in 1/16 pixel: 6 % of the shorter side."""
        return min(self.height, self.width) * UNIT * 6 // 100


@dataclass(frozen=True)
class SceneSpec:
    """Number and variety of the shapes of a scene. Ranges include both ends."""

    num_shapes: tuple[int, int] = (5, 9)
    kinds_per_scene: tuple[int, int] = (2, 4)  # with few kinds and colors, phrases fit several shapes
    colors_per_scene: tuple[int, int] = (2, 4)
    small_radius: tuple[int, int] = (73, 90)  # thousandths of the shorter side
    large_radius: tuple[int, int] = (132, 160)
    large_percent: int = 42
    striped_percent: int = 25
    spacing_percent: int = 84  # smallest distance of two centers, in percent of the sum of the radii
    max_tilt: int = 4  # steps of 3 degrees
    noise: int = 4
    min_visible_percent: int = 60
    min_visible_pixels: int = 30
    # Options that are off draw no random numbers, so presets without them keep their bytes.
    tilted_percent: int = 0  # of shapes; above 0, every angle is clearly upright or clearly tilted
    inside_percent: int = 0  # of scenes with one or two small shapes on a very large one
    behind_percent: int = 0  # of scenes with a shape partly hidden by another on purpose
    container_radius: tuple[int, int] = (190, 230)
    blobs: tuple[int, int] = (0, 0)
    blob_change: int = 14
    grain: int = 0
