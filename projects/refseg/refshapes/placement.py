"""Random scenes: first the shapes inside or behind others, then the rest one by one."""

from dataclasses import dataclass, field

from refseg.refshapes.meaning import NO_RULE, Rule
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import (
    COLORS,
    KINDS,
    TILTED_STEPS,
    UNIT,
    UPRIGHT_STEPS,
    Background,
    Blob,
    Scene,
    SceneSpec,
    Shape,
)

CONTAINERS = ("circle", "square", "diamond", "triangle")  # kinds with room inside for a small shape
WANTED_PERCENT = 45  # of the shapes, if the scene must show a wanted pair


def random_scene(height: int, width: int, spec: SceneSpec, stream: Stream, rule: Rule = NO_RULE) -> Scene:
    """Lay out shapes one by one. A shape without a free place after 40 tries is omitted."""
    layout = _Layout(height, width, spec, stream, rule)
    if spec.inside_percent and stream.chance(spec.inside_percent):
        layout.add_container()
    if spec.behind_percent and stream.chance(spec.behind_percent):
        layout.add_overlap()
    for _ in range(layout.number - len(layout.shapes)):
        layout.add_apart()
    background = Background(
        level=stream.between(112, 150),
        slope_x=stream.between(-24, 24),
        slope_y=stream.between(-24, 24),
        noise=spec.noise,
        blobs=_blobs(height, width, spec, stream),
        grain=spec.grain,
    )
    return Scene(height, width, background, tuple(layout.shapes))


def _blobs(height: int, width: int, spec: SceneSpec, stream: Stream) -> tuple[Blob, ...]:
    if not spec.blobs[1]:
        return ()
    side = min(height, width)
    return tuple(
        Blob(
            x=stream.below(width),
            y=stream.below(height),
            radius=stream.between(side // 6, side // 3),
            change=stream.between(-spec.blob_change, spec.blob_change),
        )
        for _ in range(stream.between(*spec.blobs))
    )


@dataclass
class _Layout:
    """An unfinished scene; lengths in 1/16 pixel."""

    height: int
    width: int
    spec: SceneSpec
    stream: Stream
    rule: Rule
    shapes: list[Shape] = field(default_factory=list)

    def __post_init__(self) -> None:
        stream, spec = self.stream, self.spec
        self.kinds = stream.sample(KINDS, stream.between(*spec.kinds_per_scene))
        self.colors = stream.sample(COLORS, stream.between(*spec.colors_per_scene))
        self.wanted = stream.choice(self.rule.wanted) if self.rule.wanted else None
        if self.wanted is not None:
            color, kind = self.wanted
            self.colors = [color, *(other for other in self.colors if other != color)]
            self.kinds = [kind, *(other for other in self.kinds if other != kind)]
        self.number = stream.between(*spec.num_shapes)

    def add_apart(self) -> None:
        """Add a shape at a place away from the others."""
        size = "large" if self.stream.chance(self.spec.large_percent) else "small"
        radius = self._radius(self.spec.large_radius if size == "large" else self.spec.small_radius)
        look = self._look()
        if look is None:
            return
        place = self._free_place(radius, self.shapes)
        if place is not None:
            self._add(look, size, place, radius)

    def add_container(self) -> None:
        """Add a very large shape, with one or two small ones of other colors inside."""
        stream = self.stream
        look = self._look(kinds=[kind for kind in self.kinds if kind in CONTAINERS])
        radius = self._radius(self.spec.container_radius)
        place = self._free_place(radius, self.shapes)
        if look is None or place is None:
            return
        kind, color, *_ = look
        self._add(look, "large", place, radius)
        # Places of the small ones in hundredths of the radius: one near the middle, or two side by side.
        places = [(stream.between(-15, 15), stream.between(-15, 15) + 15 * (kind == "triangle"))]
        if kind in ("circle", "square") and stream.chance(40):
            places = [(42 * sign, stream.between(-8, 8)) for sign in (-1, 1)]
            if stream.chance(50):
                places = [(y, x) for x, y in places]
        for x, y in places:
            inner = self._look(not_color=color)
            if inner is not None:
                small = self._radius(self.spec.small_radius)
                self._add(inner, "small", (place[0] + radius * x // 100, place[1] + radius * y // 100), small)

    def add_overlap(self) -> None:
        """Add two shapes of different colors; the later one covers a part of the earlier one."""
        before = len(self.shapes)
        self.add_apart()
        if len(self.shapes) == before:
            return
        lower = self.shapes[-1]
        size = "large" if self.stream.chance(50) else "small"
        radius = self._radius(self.spec.large_radius if size == "large" else self.spec.small_radius)
        look = self._look(not_color=lower.color)
        if look is None:
            return
        for _ in range(40):
            dx, dy = (self.stream.between(-100, 100) for _ in range(2))  # the offset, in hundredths of both radii
            x, y = (at + (radius + lower.radius) * d // 100 for at, d in ((lower.x, dx), (lower.y, dy)))
            border = radius + 2 * UNIT
            within = border <= x <= self.width * UNIT - border and border <= y <= self.height * UNIT - border
            if 40**2 <= dx**2 + dy**2 <= 65**2 and within and self._is_free(x, y, radius, self.shapes[:-1]):
                self._add(look, size, (x, y), radius)
                return

    def _radius(self, thousandths: tuple[int, int]) -> int:
        side = min(self.height, self.width) * UNIT
        return self.stream.between(side * thousandths[0] // 1000, side * thousandths[1] // 1000)

    def _look(self, kinds: list[str] | None = None, not_color: str = "") -> tuple[str, str, str, int] | None:
        """Draw kind, color, texture, and angle; None if the rule or ``kinds`` leave no choice."""
        kinds = self.kinds if kinds is None else kinds
        colors = [color for color in self.colors if color != not_color]
        if not kinds or not colors:
            return None
        kind, color = self.stream.choice(kinds), self.stream.choice(colors)
        if self.wanted and self.wanted[1] in kinds and self.wanted[0] in colors and self.stream.chance(WANTED_PERCENT):
            color, kind = self.wanted
        while (color, kind) in self.rule.banned:
            colors = [other for other in colors if other != color]
            if not colors:
                return None
            color = self.stream.choice(colors)
        texture = "striped" if self.stream.chance(self.spec.striped_percent) else "plain"
        return kind, color, texture, self._angle()

    def _angle(self) -> int:
        if not self.spec.tilted_percent:
            return self.stream.between(-self.spec.max_tilt, self.spec.max_tilt)
        low, high = TILTED_STEPS if self.stream.chance(self.spec.tilted_percent) else UPRIGHT_STEPS
        return self.stream.between(low, high) * self.stream.choice((-1, 1))

    def _add(self, look: tuple[str, str, str, int], size: str, place: tuple[int, int], radius: int) -> None:
        kind, color, texture, angle = look
        self.shapes.append(Shape(len(self.shapes), kind, color, size, texture, *place, radius, angle))

    def _free_place(self, radius: int, shapes: list[Shape]) -> tuple[int, int] | None:
        border = radius + 2 * UNIT
        for _ in range(40):
            x = self.stream.between(border, self.width * UNIT - border)
            y = self.stream.between(border, self.height * UNIT - border)
            if self._is_free(x, y, radius, shapes):
                return x, y
        return None

    def _is_free(self, x: int, y: int, radius: int, shapes: list[Shape]) -> bool:
        spacing = self.spec.spacing_percent
        return all(
            ((x - other.x) ** 2 + (y - other.y) ** 2) * 100**2 >= (spacing * (radius + other.radius)) ** 2
            for other in shapes
        )
