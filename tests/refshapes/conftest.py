import pytest

from refseg.refshapes.scene import UNIT, Background, Scene, Shape


def _scene(*rows, height=96, width=96):
    """Make a scene from rows of (kind, color, size, x, y[, texture[, angle]]).

    x and y are in pixels, and the angle is in steps of 3 degrees. Sizes have a radius of 8 ("small"), 14 ("large"), or
    24 ("huge", whose size is large) pixels.
    """
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
