import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import mirroring, resizing, translation
from refseg.datasets.masks import box_of_segmentation, decode, draw_polygons, rasterize, to_rle
from refseg.errors import DataError

# An 8 x 8 and a 10 x 10 square that share 5 x 5 pixels: 64 + 100 - 25 = 139 covered, 139 - 25 = 114 covered once.
OVERLAPPING = [[2, 2, 10, 2, 10, 10, 2, 10], [5, 5, 15, 5, 15, 15, 5, 15]]

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


@given(masks)
def test_both_kinds_of_rle_decode_to_the_same_mask(mask: np.ndarray) -> None:
    compressed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.flatten(order="F")
    counts, value = [], 0
    while len(flat):
        run = int(np.argmax(flat != value)) if (flat != value).any() else len(flat)
        counts.append(run)
        flat, value = flat[run:], 1 - value
    uncompressed = {"size": list(mask.shape), "counts": counts}
    for rle in (compressed, uncompressed):
        assert np.array_equal(decode(to_rle(rle, mask.shape)), mask.astype(bool))


def test_overlapping_polygons_are_united() -> None:
    """Two 4 x 4 squares share 2 x 2 pixels: 16 + 16 - 4 = 28."""
    polygons = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
    assert decode(to_rle(polygons, (8, 8))).sum() == 28


def test_polygons_of_four_numbers_are_not_boxes() -> None:
    """pycocotools takes such a list for boxes (x, y, w, h). As a polygon it has no area."""
    assert decode(to_rle([[0, 0, 4, 4], [0, 0, 2, 0, 2, 2, 0, 2]], (8, 8))).sum() == 4
    assert decode(to_rle([[0, 0, 4, 4]], (8, 8))).sum() == 0
    assert decode(to_rle([], (8, 7))).shape == (8, 7)


def test_mask_image(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[1, 2:] = 255
    path = tmp_path / "m.png"
    Image.fromarray(mask).save(path)
    assert np.array_equal(decode(to_rle(str(path), (4, 5))), mask > 0)
    with pytest.raises(DataError, match=r"m\.png has size \[4, 5\], its image has \[5, 4\]"):
        to_rle(str(path), (5, 4))
    with pytest.raises(DataError, match="cannot be read"):
        to_rle(str(tmp_path / "none.png"), (4, 5))


def mask_images() -> dict[str, Image.Image]:
    """Return one mask in every unambiguous kind of image. A conversion to gray would turn its numbers into 0."""
    mask = np.zeros((4, 5), np.uint8)
    mask[1, 2:] = 1
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # white background, black object
    return {
        "1": Image.fromarray(mask * 255).convert("1"),
        "L": Image.fromarray(mask),
        "I;16": Image.fromarray(mask.astype(np.uint16)),
        "I;16 high": Image.fromarray(mask.astype(np.uint16) * 256),
        "P": palette,
        "RGB": Image.fromarray(np.stack([0 * mask, 0 * mask, mask], -1)),
    }


@pytest.mark.parametrize("kind", list(mask_images()))
def test_nonzero_pixels_are_mask(kind: str, tmp_path: Path) -> None:
    mask_images()[kind].save(tmp_path / "m.png")
    mask = decode(to_rle(str(tmp_path / "m.png"), (4, 5)))
    assert mask.nonzero()[0].tolist() == [1, 1, 1] and mask.nonzero()[1].tolist() == [2, 3, 4]


def test_mask_image_of_32_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1], [256, 1 << 20]], np.int32)).save(tmp_path / "m.tiff")
    assert decode(to_rle(str(tmp_path / "m.tiff"), (2, 2))).tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK", "F"])
def test_ambiguous_mask_images_are_rejected(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("m.png" if mode.endswith("A") else "m.tiff")
    Image.new(mode, (5, 4)).save(path)
    with pytest.raises(DataError, match=rf"{path} has mode {mode}, .*[Ss]ave it as a gray image"):
        to_rle(str(path), (4, 5))


def test_mask_images_of_16_bit_colors_are_rejected(tmp_path: Path) -> None:
    """Pillow reads only the high bytes of such colors, so 1 would become 0."""
    cv2.imwrite(str(tmp_path / "m.png"), np.ones((4, 5, 3), np.uint16))
    with pytest.raises(DataError, match="mode RGB with 16 bits"):
        to_rle(str(tmp_path / "m.png"), (4, 5))


def test_mask_image_of_another_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 40)).save(tmp_path / "m.png")
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"has size \[40, 50\], its image has \[4, 5\]"):
        to_rle(str(tmp_path / "m.png"), (4, 5))


def test_mask_image_is_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 40)).save(tmp_path / "m.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"too large to decode: .*m\.png .*decompression bomb"):
        to_rle(str(tmp_path / "m.png"), (40, 50))


@pytest.mark.parametrize("error", [SyntaxError("broken PNG"), ValueError("bad"), EOFError("end"), struct.error("x")])
def test_any_pillow_error_is_a_data_error(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise error

    Image.new("L", (5, 4)).save(tmp_path / "m.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(DataError, match=r"corrupt.*: .*m\.png"):
        to_rle(str(tmp_path / "m.png"), (4, 5))


def test_rle_of_another_size_is_rejected() -> None:
    with pytest.raises(DataError, match=r"\[3, 3\]"):
        to_rle({"size": [3, 3], "counts": [9]}, (4, 4))


def test_overlap() -> None:
    for overlap, area in (("union", 139), ("exclude", 114)):
        assert decode(to_rle(OVERLAPPING, (20, 20), overlap)).sum() == area
        for masks_at in ("input", "original"):
            mask = rasterize(OVERLAPPING, (20, 20), np.eye(3), (20, 20), overlap=overlap, masks_at=masks_at)
            assert mask.dtype == np.uint8 and mask.sum() == area


coordinates = st.integers(-40, 100).map(lambda quarter: quarter / 4)  # some outside of a 12 x 15 image
polygons = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8), min_size=1, max_size=3)


@given(polygons, st.sampled_from(["union", "exclude"]))
def test_drawn_polygons_have_the_pixels_of_pycocotools(corners: list, overlap: str) -> None:
    arrays = [np.array(points) for points in corners]
    expected = decode(to_rle([array.ravel().tolist() for array in arrays], (12, 15), overlap))
    assert np.array_equal(draw_polygons(arrays, (12, 15), overlap), expected)


def test_degenerate_polygons() -> None:
    """Empty lists, too few points, and an odd number of values do not raise."""
    square = [0, 0, 2, 0, 2, 2, 0, 2]
    for segmentation, area in (
        ([], 0),
        ([[]], 0),
        ([[0, 0, 4, 4]], 0),
        ([[0, 0, 4, 4], square], 4),
        ([[*square, 7]], 4),
    ):
        assert rasterize(segmentation, (8, 8), np.eye(3), (8, 8)).sum() == area
        assert rasterize(segmentation, (8, 8), np.eye(3), (8, 8), masks_at="original").sum() == area
        assert decode(to_rle(segmentation, (8, 8))).sum() == area
    assert rasterize([np.array(square, np.float32)], (8, 8), np.eye(3), (8, 8)).sum() == 4


def test_polygons_are_drawn_at_the_input_size() -> None:
    """x 1..3, y 1..2 at twice the size are 4 x 2 = 8 pixels. Mirrored in a width of 16 they cover x 10..14."""
    rectangle = [[1, 1, 3, 1, 3, 2, 1, 2]]
    mask = rasterize(rectangle, (8, 8), mirroring(16) @ np.diag([2.0, 2.0, 1.0]), (16, 16))
    assert mask.sum() == 8 and mask[2:4, 10:14].all()
    assert rasterize(rectangle, (8, 8), translation(100, 0), (8, 8)).sum() == 0


def test_masks_at_input_and_original_differ_at_boundaries() -> None:
    """Drawn at 3 times the size, the edge of a triangle is straight. Resized, it has steps of 3 pixels."""
    triangle, matrix = [[0, 0, 6, 0, 0, 6]], np.diag([3.0, 3.0, 1.0])
    smooth = rasterize(triangle, (6, 6), matrix, (18, 18))
    steps = rasterize(triangle, (6, 6), matrix, (18, 18), masks_at="original")
    assert np.array_equal(steps, np.kron(decode(to_rle(triangle, (6, 6))), np.ones((3, 3), np.uint8)))
    assert not np.array_equal(smooth, steps)
    assert (smooth != steps).sum() <= 3 * 18


def test_rles_and_mask_images_are_moved_like_polygons(tmp_path: Path) -> None:
    polygon = [[4, 6, 30, 3, 36, 28, 8, 25]]
    mask = decode(to_rle(polygon, (32, 40)))
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    for matrix, size in (
        (resizing((32, 40), (48, 48)), (48, 48)),
        (mirroring(40), (32, 40)),
        (translation(-6, -5), (20, 25)),
    ):
        expected = rasterize(polygon, (32, 40), matrix, size).astype(bool)
        for segmentation in (to_rle(polygon, (32, 40)), str(tmp_path / "m.png")):
            moved = rasterize(segmentation, (32, 40), matrix, size).astype(bool)
            assert (moved & expected).sum() / (moved | expected).sum() > 0.93


def test_box_of_segmentation(tmp_path: Path) -> None:
    assert box_of_segmentation([[1, 2, 5, 2, 5, 4], [0, 0, 9, 9]], (8, 8)) == (1, 2, 5, 4)
    assert box_of_segmentation([[1, 2, 5, 2, 5, 4], [7, 0, 8, 1, 7, 1]], (8, 8)) == (1, 0, 8, 4)
    assert box_of_segmentation([], (8, 8)) is None
    assert box_of_segmentation(to_rle([[1, 2, 5, 2, 5, 4, 1, 4]], (8, 8)), (8, 8)) == (1, 2, 5, 4)
    assert box_of_segmentation({"size": [2, 2], "counts": [4]}, (2, 2)) is None
