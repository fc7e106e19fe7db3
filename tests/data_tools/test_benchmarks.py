"""Rows made of files that imitate the releases of benchmarks, and scores that leave ignored pixels out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.cli.main import main
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.masks import decode, encode, rle_to_json

SIZE = (20, 30)


def box(top: int, left: int, bottom: int, right: int) -> list[list[int]]:
    """Return the corners of a rectangle whose last row and column belong to it."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def rle(mask: np.ndarray) -> dict:
    return rle_to_json(encode(mask))


def import_rows(source: Path, out: Path, *more: str) -> list[dict]:
    assert main(["data", "import", str(source), "--out", str(out), *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_own_jsonl_needs_no_import(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "own.jsonl").write_text('{"image": "a.png", "text": "a", "targets": null}')
    assert main(["data", "import", str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "needs no import" in capsys.readouterr().err


@pytest.fixture
def reasonseg(tmp_path: Path) -> Path:
    """Write an image in the folders train and val. A small "ignore" lies on the target, and a "flag" means nothing."""
    shapes = [
        {"label": "ignore", "points": box(2, 2, 4, 4), "shape_type": "polygon"},
        {"label": "target", "points": box(0, 0, 9, 9), "shape_type": "polygon"},
        {"label": "Flag", "points": box(0, 0, 19, 29), "shape_type": "polygon"},
    ]
    for split in ("train", "val"):
        folder = tmp_path / "ReasonSeg" / split
        folder.mkdir(parents=True)
        Image.new("RGB", SIZE[::-1]).save(folder / "7.jpg")
        content: dict[str, Any] = {"text": ["what’s red?", "the red one"], "is_sentence": True, "shapes": shapes}
        (folder / "7.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("cp1252"))
    return tmp_path / "ReasonSeg"


def test_reasonseg(reasonseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Small regions are drawn over large ones. Training has all texts, val the first one."""
    (reasonseg / "val" / "8.json").write_text('{"shapes": [], "text": ["a"], "is_sentence": false}')
    rows = import_rows(reasonseg, tmp_path / "out" / "r.jsonl")
    assert [(row["split"], row["text"]) for row in rows] == [
        ("train", "what’s red?"),
        ("train", "the red one"),
        ("val", "what’s red?"),
    ]
    target = decode(rows[2]["targets"][0])
    ignored = decode(rows[2]["ignore"][0])
    assert target.sum() == 100 - 9 and ignored.sum() == 9 and not (target & ignored).any()
    assert "ReasonSeg" in (said := capsys.readouterr().out) and "8.json" in said
    assert main(["data", "check", str(tmp_path / "out" / "r.jsonl")]) == 0


def test_ignored_pixels_do_not_count(reasonseg: Path, tmp_path: Path) -> None:
    """A prediction that covers target and ignored region is perfect, on the original grid and on a squashed one."""
    data = tmp_path / "r.jsonl"
    row = import_rows(reasonseg, data)[2]
    covering = np.zeros(SIZE, bool)
    covering[:10, :10] = True
    scores = {}
    for name, mask in (("covering", covering), ("target", decode(row["targets"][0])), ("wide", covering | True)):
        line = {"expression_id": row["expression_id"], "mask": rle(mask), "no_target_prob": 0.0}
        (tmp_path / "p.jsonl").write_text(json.dumps(line))
        out = tmp_path / "s.json"
        command = ["score", str(tmp_path / "p.jsonl"), "--data", f"{data}:val", "--protocol", "refseg,gres"]
        assert main([*command, "--json", str(out)]) == 0
        results = json.loads(out.read_text())["results"]
        scores[name] = [results[0]["metrics"]["mIoU"], results[1]["metrics"]["gIoU"]]
    assert scores["covering"] == scores["target"] == [100, 100]
    assert scores["wide"][0] == pytest.approx(100 * 91 / (600 - 9))


def test_ignored_regions_reach_validation(reasonseg: Path, tmp_path: Path) -> None:
    import_rows(reasonseg, tmp_path / "r.jsonl")
    steps = [dict(type="LoadImage"), dict(type="Resize", size=(16, 16)), dict(type="RawText")]
    annotations = dict(format="jsonl", file=str(tmp_path / "r.jsonl"))
    pipeline = [*steps, dict(type="PackSample", with_ground_truth=True)]
    truth = ReferringDataset(annotations=annotations, split="val", pipeline=pipeline)[0].ground_truth
    (expression,) = truth.record.expressions
    assert decode(truth.instance_rles[expression.ignored[0]]).sum() == 9
    assert decode(truth.instance_rles[expression.referents[0]]).sum() == 91


def test_gseval(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = tmp_path / "unlabeled2017"
    images.mkdir()
    Image.new("RGB", SIZE[::-1]).save(images / "1.jpg")
    mask = np.zeros(SIZE, bool)
    mask[3:5] = True
    head = {"image_path": "1.jpg", "label": "sky", "box": [0, 3, 30, 5], "segmentation": rle(mask)}
    lines = [
        {"idx": 1, "caption": "the sky", "class_id": 0, **head},
        {"idx": 2, "caption": "the part", "class_id": 1, **head},
        {"idx": 3, "caption": " ", "class_id": 1, **head},
        {"idx": 4, "caption": "bad", "class_id": 1, **head, "segmentation": {"size": [1, 1], "counts": "??"}},
    ]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = import_rows(tmp_path / "g.jsonl", tmp_path / "own.jsonl", "--images", str(images))
    assert [(row["expression_id"], row["tags"]["class"]) for row in rows] == [("1", "0"), ("2", "1")]
    assert rows[0]["image"] == "unlabeled2017/1.jpg" and decode(rows[0]["targets"][0]).sum() == 60
    assert "2 lines that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "own.jsonl")]) == 0


def test_phrasecut(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two instances, one with two polygons. Other entries lack an image, a phrase, or an area."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "7.jpg")
    instances = [[box(0, 0, 4, 4), box(10, 0, 14, 4)], [box(0, 20, 4, 24)]]
    structure = {"name": "cup", "attributes": ["red"], "relation_descriptions": [], "type": "attribute"}
    entry = {
        "task_id": "7__1",
        "image_id": 7,
        "phrase": "red cup",
        "phrase_structure": structure,
        "Polygons": instances,
    }
    entries = [entry, {**entry, "image_id": 8}, {**entry, "phrase": ""}, {**entry, "Polygons": [[[[0, 0]]]]}]
    (tmp_path / "refer_val.json").write_text(json.dumps(entries))
    (row,) = import_rows(tmp_path / "refer_val.json", tmp_path / "out.jsonl")
    assert (row["expression_id"], row["text"], row["split"]) == ("7__1", "red cup", "val")
    assert row["image"] == "images/7.jpg" and row["tags"] == {"type": "attribute", "name": "cup"}
    assert [len(polygons) for polygons in row["targets"]] == [2, 1]
    assert row["targets"][1] == [[20, 0, 24, 0, 24, 4, 20, 4]]
    assert "3 phrases that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out.jsonl")]) == 0


@pytest.mark.parametrize(("images", "masks", "line"), [("images", "masks", "3"), ("img_rgb", "mask", "3.png")])
def test_phrase_lists(images: str, masks: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """RefSegRS names images without their ending and RISBench with it. Masks are files."""
    mask = np.zeros(SIZE, np.uint8)
    mask[3:5] = 255
    for folder, pixels in ((images, np.zeros((*SIZE, 3), np.uint8)), (masks, mask)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / folder / "3.tif")
    (tmp_path / "set" / "output_phrase_val.txt").write_text(f"{line} road along the river\n9 no such image\n{line}\n")
    (row,) = import_rows(tmp_path / "set", tmp_path / "out.jsonl")
    assert (row["text"], row["split"], row["image"]) == ("road along the river", "val", f"set/{images}/3.tif")
    assert (decode(row["targets"][0]) == (mask > 0)).all()
    assert "2 lines that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out.jsonl")]) == 0
