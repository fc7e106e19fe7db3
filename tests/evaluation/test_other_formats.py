from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.other_formats import (
    entries_below,
    open_predictions,
    png_name,
    read_coco_results,
    read_png_folder,
    write_coco_results,
)
from refseg.evaluation.prediction_file import Answer, rle_to_json, write_predictions
from refseg.instance import Instance


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


MASK = np.array([[0, 1, 0], [1, 1, 0]], bool)
OTHER = np.array([[0, 0, 1], [0, 0, 0]], bool)


def coco(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "segmentation": rle_to_json(encode(mask)), **more}


def write_json(folder: Path, content: Any) -> Path:
    (folder / "r.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "r.json"


def test_png_modes(tmp_path: Path) -> None:
    """0 is background in gray, binary, palette and color images."""
    palette = Image.fromarray(MASK.astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[..., 2] = MASK * 9
    images = {
        "grey": Image.fromarray(MASK.astype(np.uint8)),
        "grey255": Image.fromarray(MASK.astype(np.uint8) * 255),
        "bits": Image.fromarray(MASK),
        "palette": palette,
        "deep": Image.fromarray(MASK.astype(np.uint16) * 256),
        "colour": Image.fromarray(colour),
    }
    for name, image in images.items():
        image.save(tmp_path / png_name(name))
    rows = {row.expression_id: row for row in open_predictions(tmp_path)}
    assert rows == {name: Answer(name, encode(MASK)) for name in images}


@pytest.mark.parametrize("name", ["a/b 1", "50%2F", ".a", "\u00e9:?", "x.png", "img/3.jpg:0"])
def test_png_name_round_trip(name: str, tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / png_name(name))
    (row,) = read_png_folder(tmp_path)
    assert row.expression_id == name


def test_invalid_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.png file"):
        list(read_png_folder(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        list(read_png_folder(tmp_path))
    Image.fromarray(np.zeros((2, 3, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="without transparency"):  # as of masks in annotations
        list(read_png_folder(tmp_path))


def test_untrusted_pngs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block forever, an EPS file would start Ghostscript, and decoders raise nearly anything."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png .*a pipe or a device"):
        list(read_png_folder(tmp_path))
    (tmp_path / "a.png").unlink()
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(DataError, match=r"unknown format: .*a\.png"):
        list(read_png_folder(tmp_path))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no such mode")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=r"a\.png \(no such mode\)"):
        list(read_png_folder(tmp_path))


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        list(read_png_folder(tmp_path))


def test_entries_with_same_id_are_merged(tmp_path: Path) -> None:
    """Entries 0 and 2 are one answer. `min_score` drops masks, but no boxes."""
    file = write_json(
        tmp_path,
        [
            coco(MASK, score=0.9, bbox=[0, 0, 2, 2]),
            coco(OTHER, image_id=8),
            coco(OTHER, score=0.3),
        ],
    )
    both, one = read_coco_results(file)
    assert both.expression_id == "7" and coco_mask.area(both.source) == 4
    assert both.boxes == [[0, 0, 2, 2, 0.9], [2, 0, 1, 1, 0.3]]  # the second one is its mask's
    assert one == Answer("8", encode(OTHER), boxes=[[2, 0, 1, 1, 1]], raw_instances=[Instance(encode(OTHER), 1.0)])
    assert [(instance.rle, instance.score) for instance in both.raw_instances] == [
        (encode(MASK), 0.9),
        (encode(OTHER), 0.3),
    ]
    first = next(read_coco_results(file, min_score=0.5))
    assert first.source == encode(MASK) and first.boxes == both.boxes
    nothing = next(open_predictions(file, min_score=1))
    assert nothing.source == encode(np.zeros((2, 3))) and nothing.boxes == both.boxes
    assert entries_below(file, 0.5) == 1 and entries_below(file, 2) == 3


def test_negative_scores(tmp_path: Path) -> None:
    """Logits may be negative. No entry is dropped without `min_score`."""
    file = write_json(tmp_path, [coco(MASK, score=-3.5)])
    assert next(open_predictions(file)).source == encode(MASK)
    assert next(open_predictions(file, min_score=-3)).source == encode(MASK & False)


def test_boxes_without_area(tmp_path: Path) -> None:
    """ "Nothing here" is an empty mask, or a box without area."""
    empty = coco(MASK & False, bbox=[0, 0, 0, 0], score=0.9)
    boxes = [{"image_id": 8, "bbox": [1, 2, 3, 4], "score": 0.9}, {"image_id": 9, "bbox": [0, 0, 0, 0], "score": 0.9}]
    rows = list(read_coco_results(write_json(tmp_path, [empty, *boxes])))
    assert rows == [
        Answer("7", encode(MASK & False), boxes=[], raw_instances=[Instance(encode(MASK & False), 0.9)]),
        Answer("8", None, boxes=[[1, 2, 3, 4, 0.9]]),
        Answer("9", None, boxes=[]),
    ]


def test_id_fields(tmp_path: Path) -> None:
    file = write_json(tmp_path, [coco(MASK, id=1, expression_id="e", score=1)])
    assert next(read_coco_results(file)).expression_id == "e"
    assert next(read_coco_results(write_json(tmp_path, [coco(MASK, id=1)]))).expression_id == "7"
    assert list(read_coco_results(write_json(tmp_path, []))) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": 1}, "is not a list"),
        ([1], "entry 0 .*expression_id|entry 0 .*an entry must be an object"),
        ([coco(MASK), {"id": 3}], r"entry 1 .*image_id must be"),
        ([coco(MASK, segmentation=[[0, 0, 1, 1, 2, 2]])], "entry 0 .*polygons do not give"),
        ([coco(MASK, segmentation={"size": [2, 3], "counts": [7]})], "do not add up"),
        ([coco(MASK, score="high")], "score must be a finite number"),
        ([coco(MASK, score=10**400)], "score must be a finite number"),
        ([coco(MASK, bbox=[1, 2, 3])], "bbox: a box must be"),
        ([coco(MASK, bbox=5)], "bbox: a box must be"),
        ([coco(MASK, bbox=[1, 2, -3, 4])], "bbox: a box must be"),
        ([{"image_id": 7}], "segmentation must be an RLE"),
        ([coco(MASK), coco(MASK.T)], "entry 1 .*differ in size"),
        ('[{"id": 7, "bbox": [1, 1, 2, 2], "score": 0.9, "score": 0.1}]', r"r\.json: the key 'score' occurs twice"),
    ],
)
def test_invalid_entries(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        list(read_coco_results(write_json(tmp_path, content)))


def test_dispatch(tmp_path: Path) -> None:
    rows = [Answer("a", encode(MASK))]
    for name in ("p.jsonl", "p.jsonl.gz"):
        write_predictions(tmp_path / name, rows)
        assert list(open_predictions(tmp_path / name)) == rows
    (tmp_path / "p.txt").touch()
    with pytest.raises(DataError, match="unknown format of predictions"):
        open_predictions(tmp_path / "p.txt")
    with pytest.raises(DataError, match="no such file or folder"):
        open_predictions(tmp_path / "none.jsonl")
    (tmp_path / "p.json").write_text("{}\n{}")
    with pytest.raises(DataError, match=r"not JSON .*ends in \.jsonl"):
        list(open_predictions(tmp_path / "p.json"))


def test_write_coco_results(tmp_path: Path) -> None:
    """A file .json holds an entry per object for SA-Co's tools, and none for rejected answers."""
    header = {"postprocess": {"no_target": "head-or-empty", "no_target_threshold": 0.5}}
    box = encode(np.pad(np.ones((2, 3), bool), ((1, 1), (0, 2))))
    two = [Instance(box, 0.9), Instance(box, 0.2)]
    rows = [
        Answer("3", box, 0.1, raw_instances=two),
        Answer("4", box, 0.9, raw_instances=two),
        Answer("dog", box, 0.25),
        Answer("6", encode(np.zeros((4, 5))), None),
    ]
    write_predictions(tmp_path / "p.jsonl", rows, header=header)
    write_coco_results(tmp_path / "p.jsonl", tmp_path / "p.json")
    entries = json.loads((tmp_path / "p.json").read_text())
    assert [(one["image_id"], one["score"]) for one in entries] == [(3, 0.9), (3, 0.2), ("dog", 0.75)]
    assert entries[0]["bbox"] == [0, 1, 3, 2]
    assert next(read_coco_results(tmp_path / "p.json")).raw_instances == two
