from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.masks import decode, to_rle
from refseg.errors import DataError

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


@given(masks)
def test_rle_of_both_kinds_decodes_to_the_same_mask(mask: np.ndarray) -> None:
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
    """Two 4 x 4 squares that share 2 x 2 pixels: 16 + 16 - 4 = 28."""
    polygons = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
    assert decode(to_rle(polygons, (8, 8))).sum() == 28


def test_a_first_polygon_of_four_numbers_is_no_box() -> None:
    """pycocotools takes such a list for boxes (x, y, w, h); as a polygon it has no area."""
    assert decode(to_rle([[0, 0, 4, 4], [0, 0, 2, 0, 2, 2, 0, 2]], (8, 8))).sum() == 4
    assert decode(to_rle([[0, 0, 4, 4]], (8, 8))).sum() == 0
    assert decode(to_rle([], (8, 7))).shape == (8, 7)


def test_a_mask_image(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[1, 2:] = 255
    path = tmp_path / "m.png"
    Image.fromarray(mask).save(path)
    assert np.array_equal(decode(to_rle(str(path), (4, 5))), mask > 0)
    with pytest.raises(DataError, match=r"m\.png has size \[4, 5\], its image has \[5, 4\]"):
        to_rle(str(path), (5, 4))
    with pytest.raises(DataError, match="cannot be read"):
        to_rle(str(tmp_path / "none.png"), (4, 5))


def test_an_rle_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[3, 3\]"):
        to_rle({"size": [3, 3], "counts": [9]}, (4, 4))
