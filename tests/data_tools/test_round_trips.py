"""`refseg data export` and `import`: phrases, instances, and masks survive each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from refseg.cli import main
from refseg.data_tools.formats import FORMATS, WRITTEN
from refseg.data_tools.yolo import one_polygon, outlines
from refseg.datasets.masks import decode, encode, rle_to_json, to_rle
from refseg.datasets.readers import read_jsonl

SIZE = (40, 60)
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
TRIANGLE = [[20.25, 3, 40.5, 5.75, 31, 25.5]]
TWO_PARTS = [[45, 2, 55, 2, 55, 10, 45, 10], [45, 20.5, 58, 20.5, 50, 35]]


def ring() -> dict:
    """Return the RLE of a square with a hole."""
    mask = np.zeros(SIZE, bool)
    mask[15:35, 5:25] = True
    mask[20:30, 8:20] = False
    return rle_to_json(encode(mask))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a JSONL file with each case, among them an image in a folder and a mask image."""
    folder = tmp_path / "own"
    for number, name in enumerate(("1.png", "sub/größe 2.png", "images/3.png", "only negative.png")):
        file = folder / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE[1], SIZE[0]), (number, 0, 0)).save(file)
    mask = np.zeros(SIZE, np.uint8)
    mask[1:9, 30:37] = mask[5:20, 33:50] = mask[30, 30] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows = [
        ("1.png", "the square", [SQUARE], ["a"]),
        ("1.png", 'das Viereck: links, "oben" & <klein>', [SQUARE], ["a"]),
        ("1.png", "the triangle", [TRIANGLE], ["b"]),
        ("1.png", "both shapes", [SQUARE, TRIANGLE], ["a", "b"]),
        ("1.png", "a circle", None, None),
        ("sub/größe 2.png", "кольцо 環", [ring()], None),
        ("sub/größe 2.png", "two parts", [TWO_PARTS], None),
        ("sub/größe 2.png", "everything", [ring(), TWO_PARTS], None),
        ("images/3.png", "the drawn mask", ["mask.png"], None),
        ("only negative.png", "a dog", [], None),
    ]
    lines = []
    for image, text, targets, ids in rows:
        row: dict[str, Any] = {"image": f"photos/{image}", "size": list(SIZE), "text": text, "targets": targets}
        lines.append(json.dumps({**row, "split": "train"} | ({"instance_ids": ids} if ids else {})))
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "own.jsonl"


def content_of(file: Path) -> tuple[dict[tuple[bytes, str], set[bytes]], dict[bytes, int]]:
    """Return the set of masks of each phrase by the content of its image, and each image's number of instances."""
    annotations = read_jsonl(file=file)
    assert not annotations.problems
    phrases, instances = {}, {}
    for record in annotations.records:
        image = (file.parent / record.image_path).read_bytes()
        masks = []
        for instance in record.instances:
            value = instance.segmentation
            rle = to_rle(str(file.parent / value) if isinstance(value, str) else value, record.size)
            masks.append(decode(rle).tobytes())
        instances[image] = len(set(masks))
        for expression in record.expressions:
            phrases[image, expression.text] = {masks[index] for index in expression.referents}
            assert len(expression.referents) == len(phrases[image, expression.text])
    return phrases, instances


@pytest.mark.parametrize("format", WRITTEN)
def test_round_trip(format: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All masks are the same, pixel by pixel, also those of YOLO's polygons."""
    out, back = tmp_path / "there" / "exported", tmp_path / "back" / "back.jsonl"
    assert main(["data", "export", str(own), "--to", format, "--out", str(out)]) == 0
    assert "4 images, 10 phrases, 5 objects" in capsys.readouterr().out
    images = ["--images", str(own.parent / "photos")] if format in ("coco", "sa-co", "label-studio") else []
    assert main(["data", "import", str(out), *images, "--out", str(back)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: {FORMATS[format]}\n" in printed and "10 rows (2 without target)" in printed
    assert "skipped" not in printed
    assert content_of(back) == content_of(own)
    # An object that several phrases refer to keeps one id.
    rows = [json.loads(line) for line in back.read_text().splitlines()]
    assert len({(row["image"], name) for row in rows for name in row.get("instance_ids", ())}) == 5


def test_coco_opens_in_pycocotools(own: Path, tmp_path: Path) -> None:
    main(["data", "export", str(own), "--to", "coco", "--out", str(tmp_path / "coco.json")])
    coco = COCO(str(tmp_path / "coco.json"))
    areas = {a["phrases"][0]: (int(coco.annToMask(a).sum()), a["area"]) for a in coco.loadAnns(coco.getAnnIds())}
    assert areas["the square"] == (100, 100) and areas["кольцо 環"] == (280, 280)
    names = [image["file_name"] for image in coco.loadImgs(coco.getImgIds())]
    assert names == ["1.png", "sub/größe 2.png", "images/3.png", "only negative.png"]


def test_sa_co(own: Path, tmp_path: Path) -> None:
    """One entry per phrase. The square of 10 x 10 at (2, 2) has its box as shares of 60 x 40."""
    main(["data", "export", str(own), "--to", "sa-co", "--out", str(tmp_path / "s.json")])
    content = json.loads((tmp_path / "s.json").read_text())
    assert [pair["text_input"] for pair in content["images"]][:2] == [
        "the square",
        'das Viereck: links, "oben" & <klein>',
    ]
    assert content["annotations"][0]["bbox"] == pytest.approx([2 / 60, 2 / 40, 10 / 60, 10 / 40])
    assert content["annotations"][0]["area"] == pytest.approx(100 / 2400)


def test_yolo_folder(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "yolo"
    main(["data", "export", str(own), "--to", "yolo", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "3 masks with holes or several parts" in printed and "0.00% of their area changed" in printed
    assert "YOLO needs train and val" in printed
    content = yaml.safe_load((out / "data.yaml").read_text())
    assert content["train"] == "images/train" and content["names"][0] == "the square"
    assert content["negative_phrases"] == {
        "images/train/1.png": ["a circle"],
        "images/train/only negative.png": ["a dog"],
    }
    lines = (out / "labels/train/1.txt").read_text().splitlines()
    assert lines[0].split()[:3] == ["0", "0.03333333", "0.05"] and len(lines) == 5
    assert (out / "labels/train/only negative.txt").read_text() == ""
    assert (out / "images/train/images_/3.png").is_file() and (out / "labels/train/images_/3.txt").is_file()


def test_splits(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """YOLO keeps splits, and --split chooses rows."""
    split, out, back = tmp_path / "own" / "split.jsonl", tmp_path / "yolo", tmp_path / "back.jsonl"
    assert main(["data", "split", str(own), "--val", "0.25", "--test", "0.25", "--out", str(split)]) == 0
    assert main(["data", "export", str(split), "--to", "yolo", "--out", str(out)]) == 0
    assert main(["data", "import", str(out), "--out", str(back)]) == 0
    splits = [json.loads(line)["split"] for file in (split, back) for line in file.read_text().splitlines()]
    assert sorted(splits[:10]) == sorted(splits[10:]) and set(splits) == {"train", "val", "test"}
    capsys.readouterr()
    assert (
        main(["data", "export", str(split), "--to", "coco", "--split", "val", "--out", str(tmp_path / "v.json")]) == 0
    )
    assert "1 images" in capsys.readouterr().out
    assert main(["data", "export", str(split), "--to", "coco", "--split", "x", "--out", str(tmp_path / "x.json")]) == 1
    assert "no usable rows of split 'x'" in capsys.readouterr().err


def test_unusable_rows_are_counted(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    head = {"image": "photos/1.png", "size": list(SIZE)}
    empty = rle_to_json(encode(np.zeros(SIZE, bool)))
    rows = [
        {**head, "text": "nothing drawn", "targets": [empty]},
        {**head, "text": "no file", "targets": [SQUARE, "gone.png"]},
        {**head, "text": "The  square", "targets": [SQUARE]},
        {**head, "text": "", "targets": []},
        {**head, "image": "photos/gone.png", "text": "x", "targets": []},
        {**head, "image": "./photos/1.png", "size": [100_000, 100_000], "text": "x", "targets": [TWO_PARTS]},
    ]
    own.write_text(own.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "export", str(own), "--to", "coco", "--out", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert "10 phrases, 5 objects" in printed
    assert "skipped: 2 rows with an unusable target" in printed and "its mask has no pixel" in printed
    assert "skipped: 1 invalid rows" in printed and "line 14" in printed
    assert "skipped: 1 rows with the phrase and the targets of an earlier one" in printed
    assert "skipped: 1 images whose file is not there" in printed
    assert "skipped: 1 images that are too large for masks" in printed


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "yolo", "--image-prefix", "x"], "--image-prefix is for --to label-studio"),
        (["--to", "coco"], "already exists"),
        (["--to", "labelme"], "is not an empty folder"),
    ],
)
def test_errors_of_export(more: list[str], says: str, own: Path, capsys: pytest.CaptureFixture) -> None:
    out = own.parent if more[1] == "labelme" else own
    assert main(["data", "export", str(own), *more, "--out", str(out)]) == 1
    assert says in capsys.readouterr().err


def test_two_paths_of_an_image(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {"image": "./photos/1.png", "size": list(SIZE), "text": "x", "targets": [SQUARE]}
    own.write_text(own.read_text() + json.dumps(row) + "\n")
    out, merged = tmp_path / "yolo", own.parent / "merged.jsonl"
    assert main(["data", "export", str(own), "--to", "yolo", "--out", str(out)]) == 1
    assert "the image 1.png by several paths" in capsys.readouterr().err and not out.exists()
    assert main(["data", "merge", str(own), "--out", str(merged)]) == 0
    assert main(["data", "export", str(merged), "--to", "yolo", "--out", str(out)]) == 0


# Polygons of masks ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_one_polygon_covers_the_same_pixels(mask: np.ndarray) -> None:
    """pycocotools draws the polygon of any mask, with its zero-width lines, as that mask."""
    if not mask.any():
        assert outlines(mask) == []
        return
    polygon, _ = one_polygon(encode(mask), mask.shape)
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], *mask.shape))
    assert np.array_equal(decode(rle), mask)


def test_outlines_follow_pixel_edges() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    (loop,) = outlines(mask)
    assert sorted(map(tuple, loop.tolist())) == [(1, 1), (1, 3), (4, 1), (4, 3)]
