"""Scene -> pixels and visible instance masks. Integer arithmetic gives the same values on every machine.

Letters: H, W image height and width; h, w those of the box around one shape; S samples per pixel side.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import UNIT, Scene, SceneSpec, Shape

SAMPLES = 4  # S: samples per pixel and direction. A pixel belongs to a shape if at least half of the S * S are inside
GRAIN_PIXELS = 4  # side of the blocks of a grainy background
TABLE_UNIT = 4096  # one, in SINES and in the outlines below

# round(4096 * sin(3 degrees * i)), i = 0..30; written out because the last digit of sin() differs between C libraries
SINES = (
    0, 214, 428, 641, 852, 1060, 1266, 1468, 1666, 1860, 2048, 2231, 2408, 2578, 2741, 2896,
    3044, 3183, 3314, 3435, 3547, 3650, 3742, 3824, 3896, 3956, 4006, 4046, 4074, 4090, 4096,
)  # fmt: skip

PAINT = {
    "red": (214, 40, 40),
    "green": (44, 150, 64),
    "blue": (40, 84, 210),
    "yellow": (244, 216, 52),
    "purple": (134, 52, 168),
    "orange": (240, 128, 24),
    "white": (244, 244, 244),
    "black": (20, 20, 20),
}
# Every second stripe is paler or darker than the color, and differs from any background.
STRIPE_PAINT = {
    "red": (240, 160, 160),
    "green": (164, 220, 176),
    "blue": (160, 184, 244),
    "yellow": (140, 118, 10),
    "purple": (208, 168, 228),
    "orange": (136, 68, 4),
    "white": (196, 196, 196),
    "black": (68, 68, 68),
}


def sine(step: int) -> int:
    """Return 4096 * sin(3 degrees * step), rounded."""
    step %= 120
    if step >= 60:
        return -sine(step - 60)
    return SINES[step if step <= 30 else 60 - step]


def cosine(step: int) -> int:
    return sine(step + 30)


# Corners of the polygons in hundredths of the radius, y down; a circle has none.
_CORNERS = {
    "square": ((-85, -85), (85, -85), (85, 85), (-85, 85)),
    "triangle": ((0, -105), (100, 75), (-100, 75)),
    "diamond": ((0, -112), (74, 0), (0, 112), (-74, 0)),
    "cross": (
        (-34, -98), (34, -98), (34, -34), (98, -34), (98, 34), (34, 34),
        (34, 98), (-34, 98), (-34, 34), (-98, 34), (-98, -34), (-34, -34),
    ),
}  # fmt: skip
# A star has ten, alternately at the radius and at half of it; the first points up.
_STAR_LENGTHS = (TABLE_UNIT * 21 // 20, TABLE_UNIT * 10 // 19) * 5
OUTLINES = {kind: [(x * TABLE_UNIT // 100, y * TABLE_UNIT // 100) for x, y in at] for kind, at in _CORNERS.items()}
OUTLINES["star"] = [
    (length * sine(12 * i) // TABLE_UNIT, -length * cosine(12 * i) // TABLE_UNIT)
    for i, length in enumerate(_STAR_LENGTHS)
]


def outline(shape: Shape) -> list[tuple[int, int]]:
    """Return the corners of a polygon shape in the image, rounded to 1/16 pixel."""
    cos, sin = cosine(shape.angle), sine(shape.angle)
    unit = TABLE_UNIT * TABLE_UNIT
    return [
        (
            shape.x + (shape.radius * (x * cos - y * sin) + unit // 2) // unit,
            shape.y + (shape.radius * (x * sin + y * cos) + unit // 2) // unit,
        )
        for x, y in OUTLINES[shape.kind]
    ]


def inside_polygon(xs: np.ndarray, ys: np.ndarray, corners: list[tuple[int, int]]) -> np.ndarray:
    """Apply the even-odd rule to the grid of integer points ys (h, 1) by xs (1, w) -> (h, w) bool."""
    inside = np.zeros((ys.shape[0], xs.shape[1]), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        crossed = (ys >= y0) & (ys < y1)  # (h, 1)
        left_of_edge = (xs - x0) * (y1 - y0) < (ys - y0) * (x1 - x0)  # (h, w)
        inside ^= crossed & left_of_edge
    return inside


@lru_cache(maxsize=128)  # masks, pictures, and judgments need the same shapes
def coverage(shape: Shape, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the box of a shape in the image, and how many of each pixel's S * S samples it covers: (h, w) uint8."""
    reach = shape.radius * 5 // 4 + UNIT
    left, right = max(0, (shape.x - reach) // UNIT), min(width, (shape.x + reach) // UNIT + 1)
    top, bottom = max(0, (shape.y - reach) // UNIT), min(height, (shape.y + reach) // UNIT + 1)
    step = UNIT // SAMPLES
    xs = np.arange(left * UNIT + step // 2, right * UNIT, step, dtype=np.int64)[None, :]  # (1, w * S)
    ys = np.arange(top * UNIT + step // 2, bottom * UNIT, step, dtype=np.int64)[:, None]  # (h * S, 1)
    if shape.kind == "circle":
        inside = (xs - shape.x) ** 2 + (ys - shape.y) ** 2 <= shape.radius**2
    else:
        inside = inside_polygon(xs, ys, outline(shape))
    samples, counts = inside.view(np.uint8), np.zeros((bottom - top, right - left), np.uint8)
    for i in range(SAMPLES * SAMPLES):
        counts += samples[i // SAMPLES :: SAMPLES, i % SAMPLES :: SAMPLES]
    counts.flags.writeable = False
    return (slice(top, bottom), slice(left, right)), counts


def full_masks(scene: Scene) -> np.ndarray:
    """Return (N, H, W) bool masks of the shapes, each as if nothing were in front of it."""
    masks = np.zeros((len(scene.shapes), scene.height, scene.width), dtype=bool)
    for mask, shape in zip(masks, scene.shapes, strict=True):
        box, counts = coverage(shape, scene.height, scene.width)
        mask[box] = counts * 2 >= SAMPLES * SAMPLES
    return masks


def visible_masks(full: np.ndarray) -> np.ndarray:
    """Remove from each full mask the pixels that later shapes hide: (N, H, W) bool, disjoint."""
    visible = full.copy()
    hidden = np.zeros(full.shape[1:], dtype=bool)
    for i in reversed(range(len(full))):
        visible[i] &= ~hidden
        hidden |= full[i]
    return visible


def drop_hidden(scene: Scene, spec: SceneSpec) -> tuple[Scene, np.ndarray]:
    """Drop shapes that are mostly hidden; return the scene with new ids, and its visible masks."""
    full = full_masks(scene)
    shapes = list(scene.shapes)
    while True:
        visible = visible_masks(full)
        seen, area = visible.sum(axis=(1, 2)), full.sum(axis=(1, 2))
        hidden = (seen < spec.min_visible_pixels) | (seen * 100 < area * spec.min_visible_percent)
        if not hidden.any():
            shapes = [replace(shape, id=i) for i, shape in enumerate(shapes)]
            return replace(scene, shapes=tuple(shapes)), visible
        worst = int(np.flatnonzero(hidden)[0])
        shapes.pop(worst)
        full = np.delete(full, worst, axis=0)


def render(scene: Scene, stream: Stream) -> np.ndarray:
    """Draw a scene as (H, W, 3) uint8 RGB: the background, the shapes in order with soft edges, then noise."""
    height, width, background = scene.height, scene.width, scene.background
    # Gray level, slopes, and blobs of the background
    ys, xs = np.arange(height, dtype=np.int64)[:, None], np.arange(width, dtype=np.int64)[None, :]  # (H, 1), (1, W)
    gray = background.level + (2 * ys - height) * background.slope_y // (2 * height)
    gray = gray + (2 * xs - width) * background.slope_x // (2 * width)
    for blob in background.blobs:
        distance = (xs - blob.x) ** 2 + (ys - blob.y) ** 2  # squared, as the radius below
        gray += np.maximum(blob.radius**2 - distance, 0) * blob.change // blob.radius**2
    pixels = np.repeat(gray[..., None], 3, axis=2)  # (H, W, 3)
    if background.grain:
        grain = _noise((-(-height // GRAIN_PIXELS), -(-width // GRAIN_PIXELS), 3), background.grain, stream)
        pixels += grain.repeat(GRAIN_PIXELS, axis=0).repeat(GRAIN_PIXELS, axis=1)[:height, :width]
    # Shapes. Pixels are mixed by the share of their samples that a shape covers.
    whole = SAMPLES * SAMPLES
    for shape in scene.shapes:
        box, counts = coverage(shape, height, width)
        paint = np.array(PAINT[shape.color], dtype=np.int64)
        if shape.texture == "striped":
            x = xs[:, box[1]] * UNIT + UNIT // 2 - shape.x  # (1, w)
            y = ys[box[0]] * UNIT + UNIT // 2 - shape.y  # (h, 1)
            turn = shape.angle + 15  # stripes are at 45 degrees to the shape
            along = (x * cosine(turn) + y * sine(turn)) // TABLE_UNIT  # (h, w), 1/16 pixel
            odd = (along // max(2 * UNIT, shape.radius // 4)) % 2 == 1
            paint = np.where(odd[..., None], np.array(STRIPE_PAINT[shape.color], dtype=np.int64), paint)
        part = counts[..., None].astype(np.int64)  # (h, w, 1)
        pixels[box] = (pixels[box] * (whole - part) + paint * part + whole // 2) // whole
    return np.clip(pixels + _noise(pixels.shape, background.noise, stream), 0, 255).astype(np.uint8)


def _noise(shape: tuple[int, ...], largest: int, stream: Stream) -> np.ndarray:
    """Draw int64 numbers from -largest to largest."""
    count = int(np.prod(shape))
    return stream.bytes(count).reshape(shape).astype(np.int64) * (2 * largest + 1) // 256 - largest
