"""Exports: COCO results and Label Studio brushes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from refseg.inference.exports import encode_brush, image_ids, polygon_regions, write_coco, write_labelstudio


def decode_brush(values: list[int]) -> np.ndarray:
    """Decode a brush as Label Studio's front end does: a bit stream of both kinds of runs, with a header of widths."""
    bits = "".join(f"{value:08b}" for value in values)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, width = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        same = read(1)
        length = read(widths[read(2)]) + 1
        out += [read(width)] * length if same else [read(width) for _ in range(length)]
    assert len(out) == total and len(bits) - at < 8 and "1" not in bits[at:]
    return np.array(out, np.uint8)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_brush_round_trip(mask: np.ndarray) -> None:
    channels = decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    assert (channels == np.where(mask, 255, 0)[..., None]).all()


def test_long_runs() -> None:
    """The 200 x 400 x 4 = 320,000 equal values are more than four of the longest runs, which have 65,536."""
    mask = np.ones((200, 400), bool)
    assert (decode_brush(encode_brush(mask)) == 255).all()


def test_brush_of_one_pixel() -> None:
    """One mask pixel is 4 values of 255. The bits: 4 in 32 bits; 00111 (values of 8 bits); 0010 0011 0111 1111 (lengths
    of 3, 4, 8 and 16 bits); 1 (a run), 00 (3 bits), 011 (4 values), 11111111. These are 67 bits and 5 zeros:
    00000000 00000000 00000000 00000100 | 00111 001 | 0 0011 011 | 1 1111 1 00 | 011 11111 | 111 00000"""
    assert encode_brush(np.ones((1, 1), bool)) == [0, 0, 0, 4, 57, 27, 252, 127, 224]


def test_brush_matches_label_studio() -> None:
    """Label Studio wrote these bytes for an image of 3332 x 2527 whose first rows are empty."""
    real = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240, 15]
    assert encode_brush(np.zeros((2527, 3332), bool))[: len(real)] == real


def rle(*box: int) -> dict:
    mask = np.zeros((6, 8), np.uint8, order="F")
    top, left, bottom, right = box
    mask[top:bottom, left:right] = 1
    found = coco_mask.encode(mask)
    return {"size": found["size"], "counts": found["counts"].decode()}


ROWS = [
    {
        "expression_id": "a#0", "image": "x/a_07.png", "text": 'the <"dogs">', "nothing_here": False, "score": 0.7,
        "mask": rle(0, 0, 3, 8),
        "instances": [{"mask": rle(0, 0, 3, 2), "score": 0.9}, {"mask": rle(0, 4, 3, 8), "score": 0.6}],
    },
    {"expression_id": "a#1", "image": "x/a_07.png", "text": "a cat", "nothing_here": True, "score": 0.0,
     "mask": rle(0, 0, 1, 1), "instances": [{"mask": rle(0, 0, 1, 1), "score": 0.9}]},
    {"expression_id": "b#0", "image": "x/b_12.png", "text": "a cat", "nothing_here": False, "score": 0.8,
     "mask": rle(1, 2, 4, 5)},
]  # fmt: skip


def test_coco(tmp_path: Path) -> None:
    """The first image has two dogs and no cat. The answer for the second image has no instances."""
    write_coco(tmp_path / "coco.json", ROWS, ["x/a_07.png", "x/b_12.png"])
    found = json.loads((tmp_path / "coco.json").read_text())
    assert [(one["image_id"], one["expression_id"], one["score"]) for one in found] == [
        (7, "a#0", 0.9),
        (7, "a#0", 0.6),
        (12, "b#0", 0.8),
    ]
    assert found[2]["segmentation"] == rle(1, 2, 4, 5) and found[2]["text"] == "a cat"
    data = COCO()
    data.dataset = {"images": [{"id": 7}, {"id": 12}], "categories": [{"id": 1}], "annotations": []}
    data.createIndex()
    loaded = data.loadRes(str(tmp_path / "coco.json"))
    assert [(one["area"], list(one["bbox"])) for one in loaded.loadAnns([1, 2, 3])] == [
        (6, [0, 0, 2, 3]),
        (12, [4, 0, 4, 3]),
        (9, [2, 1, 3, 3]),
    ]
    write_coco(tmp_path / "none.json", [], [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_image_ids() -> None:
    assert image_ids(["COCO_train2014_000000000123.jpg", "b/9.jpg"]) == {
        "COCO_train2014_000000000123.jpg": 123,
        "b/9.jpg": 9,
    }
    for names in (["a_1.png", "b_1.png"], ["a_1.png", "b.png"]):
        assert image_ids(names) == {name: name for name in names}


def test_labelstudio(tmp_path: Path) -> None:
    write_labelstudio(tmp_path / "ls.json", ROWS, prefix="/data/local-files/?d=", version="best.pth")
    first, second = json.loads((tmp_path / "ls.json").read_text())
    assert first["data"] == {"image": "/data/local-files/?d=x/a_07.png"}
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.6 and prediction["model_version"] == "best.pth"
    regions = prediction["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [['the <"dogs">']] * 2
    assert len({region["id"] for region in regions}) == 2
    for region, instance in zip(regions, ROWS[0]["instances"], strict=True):
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (8, 6, 0)
        channels = decode_brush(region["value"]["rle"]).reshape(6, 8, 4)
        assert (channels[..., 3] == 255 * coco_mask.decode(instance["mask"])).all()
    assert len(second["predictions"][0]["result"]) == 1
    view = ElementTree.parse(tmp_path / "ls.xml").getroot()
    brush = view.find("BrushLabels")
    assert {region["from_name"] for region in regions} == {brush.get("name")}
    assert [label.get("value") for label in brush] == ['the <"dogs">', "a cat"]


def test_polygons_give_the_mask() -> None:
    """Two discs are two polygons. Drawn again by pycocotools, they have an IoU of 0.97 with the discs."""
    y, x = np.mgrid[:80, :120]
    mask = ((x - 30) ** 2 + (y - 40) ** 2 < 400) | ((x - 85) ** 2 + (y - 35) ** 2 < 600)
    regions = polygon_regions(mask, "a disc", 0.5, "0", from_name="tag", to_name="img")
    assert len({region["id"] for region in regions}) == len(regions) == 2
    polygons = [(np.array(one["value"]["points"]) * (1.2, 0.8)).ravel().tolist() for one in regions]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 80, 120))).astype(bool)
    iou = (drawn & mask).sum() / (drawn | mask).sum()
    assert iou > 0.96
    assert polygon_regions(np.zeros((4, 4), bool), "a", 0.5, "0", from_name="tag", to_name="img") == []
