"""Notes on suspicious prediction files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.evaluation.notes import SuspiciousFields
from refseg.evaluation.other_formats import read_png_folder
from refseg.evaluation.prediction_file import Answer
from refseg.instance import Instance

SIZE = (480, 640)
BOXES = [(10, 20, 100, 50), (400, 300, 200, 150), (300, 10, 30, 400), (5, 430, 620, 45), (600, 2, 30, 30)]
MASK = coco_mask.encode(np.zeros(SIZE, np.uint8, order="F"))


def notes(*rows: Answer) -> list[str]:
    suspicious = SuspiciousFields()
    for row in rows:
        suspicious.check(row, SIZE)
    return suspicious.notes()


def with_boxes(boxes: list[tuple[float, ...]], score: float = 0.9) -> list[Answer]:
    return [Answer(f"e{i}", None, boxes=[[*map(float, box), score]]) for i, box in enumerate(boxes)]


def test_valid_files_have_no_notes() -> None:
    """A box may leave the image by a little, and a box of one pixel may lie in the corner."""
    inside = with_boxes([*BOXES, (0, 0, 1, 1), (-2, -3, 650, 490)])
    instances = [Instance(MASK, 0.0), Instance(MASK, 1.0)]
    assert notes(*inside, Answer("m", MASK, 0.5, raw_instances=instances), Answer("n", MASK, boxes=[])) == []
    assert notes() == []


def test_boxes_in_0_to_1() -> None:
    relative = [(x / 640, y / 480, w / 640, h / 480) for x, y, w, h in BOXES]
    (note,) = notes(*with_boxes(relative))
    assert note.startswith("5 predictions have boxes in 0..1 (e0, e1, e2, ...)")


def test_corners_instead_of_width_and_height() -> None:
    """(400, 300, 200, 150) as corners is (400, 300, 600, 450), which as (x, y, width, height) ends at x = 1000."""
    corners = [(x, y, x + w, y + h) for x, y, w, h in BOXES]
    (note,) = notes(*with_boxes(corners))
    assert note.startswith("boxes of 3 predictions leave the image (e1, e3, e4)") and "corners" in note


def test_boxes_that_leave_the_image_are_not_always_corners() -> None:
    """(400, 300, 350, 100) would have y2 < y1."""
    assert notes(*with_boxes([(400, 300, 350, 100)])) == []


@pytest.mark.parametrize("score", [-0.1, 1.2, 17.0])
def test_scores_outside_0_to_1(score: float) -> None:
    (note,) = notes(*with_boxes(BOXES[:1], score), *with_boxes(BOXES[:1]))
    assert note.startswith(f"1 predictions have scores outside 0..1 (e0: {score:g})")
    (note,) = notes(Answer("i", MASK, raw_instances=[Instance(MASK, score)]))
    assert f"(i: {score:g})" in note


def test_images_with_many_values(tmp_path: Path) -> None:
    """The pixels of a palette image are indices of objects, so many values are fine there."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    palette = Image.fromarray(ramp, "P")
    palette.putpalette(list(range(256)) * 3)
    color = np.zeros((2, 256, 3), np.uint8)
    color[..., 1] = ramp // 64
    images = {
        "a": Image.fromarray(ramp),
        "b": Image.fromarray((ramp > 9).astype(np.uint8) * 255),
        "c": Image.fromarray(color),
        "d": palette,
        "e": Image.fromarray(ramp.astype(np.uint16) * 256),
        "f": Image.fromarray(np.zeros((2, 256), np.uint8)),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    rows = list(read_png_folder(tmp_path))
    assert {row.expression_id: row.levels for row in rows} == {"a": 256, "b": 2, "c": 4, "d": 2, "e": 256, "f": 2}
    (note,) = notes(*rows)
    assert note.startswith("3 masks are images with more than two values (a: 256 values, c: 4 values, e: 256 values)")


@pytest.mark.parametrize("command", ["score", "compare"])
def test_commands_print_and_save_notes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    target = [[10.0, 10, 50, 10, 50, 50, 10, 50]]
    row = {"expression_id": "1", "image": "1.jpg", "size": list(SIZE), "text": "a dog", "targets": [target]}
    Path("data.jsonl").write_text(json.dumps(row) + "\n")
    Path("p.json").write_text(json.dumps([{"id": 1, "bbox": [0.1, 0.1, 0.5, 0.5], "score": 7.5}]))
    files = ["p.json"] if command == "score" else ["p.json", "p.json"]
    assert main([command, *files, "--data", "data.jsonl", "--protocol", "rec", "--json", "out.json"]) == 0
    out = capsys.readouterr().out
    assert "suspicious: 1 predictions have boxes in 0..1 (1)" in out
    assert "suspicious: 1 predictions have scores outside 0..1 (1: 7.5)" in out
    assert sum("suspicious" in note for note in json.loads(Path("out.json").read_text())["notes"]) == 2 * len(files)
