import pytest

from refseg.refshapes.scene import UNIT, Background, Scene, Shape


def _scene(*rows, height=96, width=96):
    """Rows of (kind, color, size, x, y), perhaps a texture, perhaps an angle in steps of 3 degrees; x and y in pixels,
    radius 8 (small), 14 (large) or 24 ("huge", which is large)."""
    shapes = []
    for i, (kind, color, size, x, y, *more) in enumerate(rows):
        texture, angle = [*more, *["plain", 0][len(more) :]]
        radius = {"small": 8, "large": 14, "huge": 24}[size] * UNIT
        size = size.replace("huge", "large")
        shapes.append(Shape(i, kind, color, size, texture, int(x * UNIT), int(y * UNIT), radius, angle))
    return Scene(height, width, Background(level=128, slope_x=0, slope_y=0, noise=0), tuple(shapes))


@pytest.fixture(scope="session")
def make_scene():
    return _scene
