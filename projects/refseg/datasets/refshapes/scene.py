"""What is in a RefShapes image: coloured shapes on a background, and how a random scene is laid out.

All lengths are whole numbers of 1/16 pixel (``UNIT``) and all angles are whole steps of 3 degrees, so that a scene is
made, drawn and judged with integers only and is the same on every machine.
"""

from dataclasses import dataclass

from refseg.datasets.refshapes.stream import Stream

UNIT = 16  # lengths are counted in 1/16 pixel

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
VALUES = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}


@dataclass(frozen=True)
class Shape:
    """One instance. ``id`` is its place in the scene and its depth: a higher id is drawn over a lower one."""

    id: int
    kind: str
    colour: str
    size: str
    texture: str
    x: int  # centre, 1/16 pixel from the left edge of the image
    y: int  # centre, 1/16 pixel from the top edge of the image
    radius: int  # 1/16 pixel
    angle: int  # steps of 3 degrees


@dataclass(frozen=True)
class Background:
    """Grey ``level`` at the centre, changed by ``slope_x``/``slope_y`` grey levels from edge to edge, plus noise."""

    level: int
    slope_x: int
    slope_y: int
    noise: int  # largest change of one value, either way


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
    kinds_per_scene: tuple[int, int] = (2, 4)  # few kinds and colours per scene: phrases then fit several shapes
    colours_per_scene: tuple[int, int] = (2, 4)
    small_radius: tuple[int, int] = (73, 90)  # thousandths of the shorter side
    large_radius: tuple[int, int] = (132, 160)
    large_percent: int = 42
    striped_percent: int = 25
    spacing_percent: int = 84  # centres stay this part of the sum of two radii apart
    max_tilt: int = 4  # steps of 3 degrees
    noise: int = 4
    min_visible_percent: int = 60
    min_visible_pixels: int = 30


def random_scene(height: int, width: int, spec: SceneSpec, stream: Stream) -> Scene:
    """Lay out shapes one by one; a shape that finds no free place in 40 tries is left out."""
    kinds = stream.sample(KINDS, stream.between(*spec.kinds_per_scene))
    colours = stream.sample(COLOURS, stream.between(*spec.colours_per_scene))
    shapes: list[Shape] = []
    for _ in range(stream.between(*spec.num_shapes)):
        size = "large" if stream.chance(spec.large_percent) else "small"
        low, high = spec.large_radius if size == "large" else spec.small_radius
        side = min(height, width) * UNIT
        radius = stream.between(side * low // 1000, side * high // 1000)
        kind, colour = stream.choice(kinds), stream.choice(colours)
        texture = "striped" if stream.chance(spec.striped_percent) else "plain"
        angle = stream.between(-spec.max_tilt, spec.max_tilt)
        place = _free_place(height, width, radius, shapes, spec.spacing_percent, stream)
        if place is not None:
            shapes.append(Shape(len(shapes), kind, colour, size, texture, *place, radius, angle))
    background = Background(
        level=stream.between(112, 150),
        slope_x=stream.between(-24, 24),
        slope_y=stream.between(-24, 24),
        noise=spec.noise,
    )
    return Scene(height, width, background, tuple(shapes))


def _free_place(
    height: int, width: int, radius: int, shapes: list[Shape], spacing_percent: int, stream: Stream
) -> tuple[int, int] | None:
    border = radius + 2 * UNIT
    for _ in range(40):
        x = stream.between(border, width * UNIT - border)
        y = stream.between(border, height * UNIT - border)
        if all(
            ((x - other.x) ** 2 + (y - other.y) ** 2) * 100**2 >= (spacing_percent * (radius + other.radius)) ** 2
            for other in shapes
        ):
            return x, y
    return None
