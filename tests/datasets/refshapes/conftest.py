import pytest

from refseg.datasets.refshapes.scene import UNIT, Background, Scene, Shape


def _scene(*rows, height=96, width=96):
    """Rows of (kind, colour, size, x, y) and perhaps a texture; x and y in pixels, radius 8 (small) or 14 (large)."""
    shapes = []
    for i, (kind, colour, size, x, y, *texture) in enumerate(rows):
        radius = (8 if size == "small" else 14) * UNIT
        texture = texture[0] if texture else "plain"
        shapes.append(Shape(i, kind, colour, size, texture, int(x * UNIT), int(y * UNIT), radius, 0))
    return Scene(height, width, Background(level=128, slope_x=0, slope_y=0, noise=0), tuple(shapes))


@pytest.fixture(scope="session")
def make_scene():
    return _scene
