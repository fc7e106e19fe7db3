"""Random scenes: first the shapes inside or behind others, then the rest one by one."""

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
    level, slope_x, slope_y = stream.between(112, 150), stream.between(-24, 24), stream.between(-24, 24)
    side = min(height, width)
    blobs = tuple(
        Blob(
            x=stream.below(width),
            y=stream.below(height),
            radius=stream.between(side // 6, side // 3),
            change=stream.between(-spec.blob_change, spec.blob_change),
        )
        for _ in range(stream.between(*spec.blobs) if spec.blobs[1] else 0)
    )
    background = Background(level, slope_x, slope_y, spec.noise, blobs, spec.grain)
    return Scene(height, width, background, tuple(layout.shapes))


class _Layout:
    """An unfinished scene; lengths in 1/16 pixel."""

    def __init__(self, height: int, width: int, spec: SceneSpec, stream: Stream, rule: Rule) -> None:
        self.height, self.width, self.spec, self.stream, self.rule = height, width, spec, stream, rule
        self.shapes: list[Shape] = []
        self.kinds = stream.sample(KINDS, stream.between(*spec.kinds_per_scene))
        self.colors = stream.sample(COLORS, stream.between(*spec.colors_per_scene))
        self.wanted = stream.choice(rule.wanted) if rule.wanted else None
        if self.wanted is not None:
            color, kind = self.wanted
            self.colors = [color, *(other for other in self.colors if other != color)]
            self.kinds = [kind, *(other for other in self.kinds if other != kind)]
        self.number = stream.between(*spec.num_shapes)

    def add_apart(self) -> None:
        """Add a shape at a place away from the others."""
        size, radius = self._size(self.spec.large_percent)
        look = self._look(self.kinds, self.colors)
        if look is None:
            return
        place = self._free_place(radius)
        if place is not None:
            self._add(look, size, place, radius)

    def add_container(self) -> None:
        """Add a very large shape, with one or two small ones of other colors inside."""
        stream = self.stream
        look = self._look([kind for kind in self.kinds if kind in CONTAINERS], self.colors)
        radius = self._radius(self.spec.container_radius)
        place = self._free_place(radius)
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
            inner = self._look(self.kinds, [other for other in self.colors if other != color])
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
        size, radius = self._size(large_percent=50)
        look = self._look(self.kinds, [color for color in self.colors if color != lower.color])
        if look is None:
            return
        for _ in range(40):
            dx, dy = (self.stream.between(-100, 100) for _ in range(2))  # the offset, in hundredths of both radii
            x, y = (at + (radius + lower.radius) * d // 100 for at, d in ((lower.x, dx), (lower.y, dy)))
            if 40**2 <= dx**2 + dy**2 <= 65**2 and self._is_free(x, y, radius, self.shapes[:-1]):
                self._add(look, size, (x, y), radius)
                return

    def _size(self, large_percent: int) -> tuple[str, int]:
        """Draw the size and the radius of a shape."""
        size = "large" if self.stream.chance(large_percent) else "small"
        return size, self._radius(self.spec.large_radius if size == "large" else self.spec.small_radius)

    def _radius(self, thousandths: tuple[int, int]) -> int:
        side = min(self.height, self.width) * UNIT
        return self.stream.between(side * thousandths[0] // 1000, side * thousandths[1] // 1000)

    def _look(self, kinds: list[str], colors: list[str]) -> tuple[str, str, str, int] | None:
        """Draw kind, color, texture, and angle; None if the rule, ``kinds``, or ``colors`` leave no choice."""
        if not kinds or not colors:
            return None
        stream, spec = self.stream, self.spec
        kind, color = stream.choice(kinds), stream.choice(colors)
        if self.wanted and self.wanted[1] in kinds and self.wanted[0] in colors and stream.chance(WANTED_PERCENT):
            color, kind = self.wanted
        while (color, kind) in self.rule.banned:
            colors = [other for other in colors if other != color]
            if not colors:
                return None
            color = stream.choice(colors)
        texture = "striped" if stream.chance(spec.striped_percent) else "plain"
        if not spec.tilted_percent:
            return kind, color, texture, stream.between(-spec.max_tilt, spec.max_tilt)
        low, high = TILTED_STEPS if stream.chance(spec.tilted_percent) else UPRIGHT_STEPS
        return kind, color, texture, stream.between(low, high) * stream.choice((-1, 1))

    def _add(self, look: tuple[str, str, str, int], size: str, place: tuple[int, int], radius: int) -> None:
        kind, color, texture, angle = look
        self.shapes.append(Shape(len(self.shapes), kind, color, size, texture, *place, radius, angle))

    def _free_place(self, radius: int) -> tuple[int, int] | None:
        border = radius + 2 * UNIT
        for _ in range(40):
            x = self.stream.between(border, self.width * UNIT - border)
            y = self.stream.between(border, self.height * UNIT - border)
            if self._is_free(x, y, radius, self.shapes):
                return x, y
        return None

    def _is_free(self, x: int, y: int, radius: int, shapes: list[Shape]) -> bool:
        """Return whether a place is 2 pixels inside the image and at a distance from these shapes."""
        border, spacing = radius + 2 * UNIT, self.spec.spacing_percent
        within = border <= x <= self.width * UNIT - border and border <= y <= self.height * UNIT - border
        return within and all(
            ((x - other.x) ** 2 + (y - other.y) ** 2) * 100**2 >= (spacing * (radius + other.radius)) ** 2
            for other in shapes
        )
