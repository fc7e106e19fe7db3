"""Rows made of files that imitate the releases of benchmarks, and scores that leave ignored pixels out."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.cli.main import main
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.masks import decode, encode, rle_to_json
from refseg.errors import DataError

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


def write_parquet(file: Path, rows: list[dict]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_pbench(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two levels, one of them in two files. The image of three rows is written once, and a row without a mask refers to
    nothing. Rows with a damaged image or a mask of another size are skipped.

    The answer finds one of two objects, and misses the only object of another phrase: F1 (2/3 + 0) / 2 in level_0.
    """
    encoded = io.BytesIO()
    Image.new("RGB", SIZE[::-1]).save(encoded, "png")
    masks = np.zeros((2, *SIZE), np.uint8)
    masks[0, 2:9, 3:9], masks[1, 12:18, 20:25] = 1, 1
    first, second = map(rle, masks)
    image = {"bytes": encoded.getvalue(), "path": None}
    row = {"image": image, "expression": "cups", "masks": [first, second], "count": 2, "id": 5}
    folder = tmp_path / "PBench" / "data"
    write_parquet(folder / "level_0-00000-of-00002.parquet", [row, {**row, "image": {"bytes": b"x", "path": None}}])
    write_parquet(folder / "level_0-00001-of-00002.parquet", [{**row, "expression": "a cup", "masks": [second]}])
    other_size = {"size": [5, 5], "counts": rle(np.ones((5, 5), np.uint8))["counts"]}
    dense = [{**row, "masks": [], "count": 0}, {**row, "masks": [other_size, first]}]
    write_parquet(folder / "dense-00000-of-00001.parquet", dense)

    rows = import_rows(tmp_path / "PBench", tmp_path / "out.jsonl")
    assert [(one["expression_id"], one["split"], one["tags"]) for one in rows] == [
        ("dense/5:1", "dense", {"level": "dense"}),
        ("level_0/5:1", "level_0", {"level": "level_0"}),
        ("level_0/5:3", "level_0", {"level": "level_0"}),
    ]
    assert [len(one["targets"] or ()) for one in rows] == [0, 2, 1] and decode(rows[1]["targets"][0]).sum() == 42
    assert [file.name for file in (tmp_path / "PBench" / "images").iterdir()] == [Path(rows[0]["image"]).name]
    assert "2 rows that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out.jsonl")]) == 0

    found = {"expression_id": "level_0/5:1", "instances": [{"mask": first, "score": 0.9}]}
    (tmp_path / "p.jsonl").write_text(json.dumps(found))
    command = ["score", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "out.jsonl"), "--protocol", "pbench"]
    assert main([*command, "--by", "tag:level", "--json", str(tmp_path / "s.json")]) == 0
    _, level_0 = json.loads((tmp_path / "s.json").read_text())["by"]["tag:level"]
    assert [level_0[name] for name in ("macro_F1", "macro_F1@0.5")] == pytest.approx([100 / 3, 100 / 3])


def test_ref_l4(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Boxes are exact, and of two sizes. A row without a caption and one whose box has no area are skipped. A mask is
    scored by the box around it: 4 x 4 of 4 x 5 pixels."""
    box = {"bbox": [2.0, 2.0, 4.0, 5.0], "bbox_id": "o365_1", "ori_category_id": "o365_64", "image_id": "o365_9"}
    row = {"id": 1, "caption": "a cup", **box, "height": 400, "width": 500, "file_name": "a.jpg", "is_rewrite": True}
    row |= {"split": "val"}
    wide = {**row, "id": 2, "bbox": [0.5, 0.5, 256.0, 256.0], "is_rewrite": False, "ori_category_id": "refcoco_62"}
    bad = [{**row, "id": 3, "caption": ""}, {**row, "id": 4, "bbox": [1.0, 1.0, 0.0, 5.0]}]
    write_parquet(tmp_path / "ref-l4-val.parquet", [row, wide, *bad])
    (tmp_path / "images").mkdir()
    Image.new("RGB", (500, 400)).save(tmp_path / "images" / "a.jpg")
    first, second = import_rows(tmp_path / "ref-l4-val.parquet", tmp_path / "out.jsonl")
    assert (first["text"], first["image"], first["split"], first["targets"]) == (
        "a cup", "images/a.jpg", "val", [{"box": [2.0, 2.0, 4.0, 5.0]}],
    )  # fmt: skip
    assert first["tags"] == {"size": "small", "category": "o365_64", "class": "o365_64", "rewritten": True}
    assert second["tags"] == {"size": "medium", "category": "refcoco_62", "class": "o365_3", "rewritten": False}
    assert second["targets"] == [{"box": [0.5, 0.5, 256.0, 256.0]}]
    assert "2 rows that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out.jsonl")]) == 0

    mask = np.zeros((400, 500), np.uint8)
    mask[2:6, 2:6] = 1
    answers = [{"expression_id": "1", "mask": rle(mask)}, {"expression_id": "2", "boxes": [[0.5, 0.5, 256, 256, 1]]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, answers)))
    command = ["score", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "out.jsonl"), "--protocol"]
    assert main([*command, "ref-l4", "--json", str(tmp_path / "s.json")]) == 0
    # IoU 0.8 is above 0.5, ..., 0.75 (6 of 10), and not above 0.8
    assert json.loads((tmp_path / "s.json").read_text())["metrics"] == pytest.approx(
        {"Acc@0.5": 100, "Acc@0.75": 100, "Acc@0.9": 50, "mAcc": 80}
    )
    assert main([*command, "refseg"]) == 1
    assert "expression 1 refers to a box without a mask. Score boxes" in capsys.readouterr().err
    assert main(["data", "export", str(tmp_path / "out.jsonl"), "--to", "coco", "--out", str(tmp_path / "c.json")]) == 1
    assert "it is a box without a mask" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"out.jsonl: \d+ rows have a box and no mask, the first is"):
        annotations = dict(format="jsonl", file=str(tmp_path / "out.jsonl"))
        ReferringDataset(annotations=annotations, pipeline=[dict(type="PackSample")])


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write_parquet(tmp_path / "a.parquet", [{"x": 1}])
    command = ["data", "import", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "o.jsonl")]
    assert main(command) == 1
    assert "a.parquet has the columns of neither PBench nor Ref-L4" in capsys.readouterr().err
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert main(command) == 1
    assert "a.parquet cannot be read" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(command) == 1
    assert "needs pyarrow. Install it: pip install 'refseg[parquet]'" in capsys.readouterr().err


def test_finecops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A positive, and a negative that keeps the box of the phrase it was made from. An annotation without its phrase is
    skipped. Both answers have the box, and the negative's is rejected."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "7.jpg")
    phrase = {"id": 1, "file_name": "7.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "the red cup"}
    region = {"id": 1, "image_id": 1, "bbox": [2, 3, 6, 4], "level": 2, "tuple_type": "and"}
    negative = {"negative_type": "attribute", "negative_level": 1, "negative_cate": "text", "positive_id": 1}
    content = {
        "images": [phrase, {**phrase, "id": 2, "caption": "the blue cup"}],
        "annotations": [region, {**region, "id": 2, "image_id": 2, **negative}, {**region, "image_id": 3}],
    }
    file = tmp_path / "test_expression_all_coco_format.json"
    file.write_text(json.dumps(content))
    positive, none = import_rows(file, tmp_path / "out.jsonl")
    assert positive["text"] == "the red cup" and positive["split"] == "test"
    assert positive["targets"] == [{"box": [2, 3, 6, 4]}]
    assert positive["tags"] == {"level": "2"} and none["targets"] is None
    assert none["tags"] == {
        "level": "2", "negative_cate": "text", "negative_type": "attribute", "negative_level": "1"
    }  # fmt: skip
    assert "1 annotations that cannot be used" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out.jsonl")]) == 0

    box = {"boxes": [[2, 3, 6, 4, 0.9]]}
    answers = [{"expression_id": name, **box, "no_target_prob": prob} for name, prob in (("1", 0.2), ("2", 0.7))]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, answers)))
    command = ["score", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "out.jsonl"), "--protocol", "finecops"]
    assert main([*command, "--by", "tag:level,tag:negative_type", "--json", str(tmp_path / "s.json")]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["metrics"] == {"Acc@0.5": 100, "N-acc": 100, "T-acc": 100, "AUC": 100}
    assert [line["N-acc"] for line in result["by"]["tag:negative_type"]] == [100]
    # Without probabilities, an answer without a box is a rejection
    boxes = [{"expression_id": "1", **box}, {"expression_id": "2", "boxes": []}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"N-acc +100.00\n +T-acc +100.00", printed) and "no_target_prob" not in printed
    file.write_text("[]")
    assert main(["data", "import", str(file), "--format", "finecops", "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "it needs the lists images and annotations" in capsys.readouterr().err
