"""`refseg data merge`: equal images get one path, duplicates are dropped, and conflicts are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg.cli import main
from refseg.datasets.masks import encode, rle_to_json
from refseg.datasets.readers import read_jsonl

SIZE = (8, 10)
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]
OTHER = [[5, 5, 8, 5, 8, 8, 5, 8]]


def row(text: str, *targets: object, image: str = "1.png", **more: object) -> dict:
    return {"image": image, "size": list(SIZE), "text": text, "targets": list(targets) or None, **more}


def write(folder: Path, name: str, *rows: dict) -> str:
    """Write a JSONL file in its own folder, with images 1.png (equal in all folders) and 2.png (not equal)."""
    (folder / name).mkdir()
    Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / name / "1.png")
    Image.new("RGB", (SIZE[1], SIZE[0]), (ord(name), 0, 0)).save(folder / name / "2.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[1:4, 1:4] = 255
    Image.fromarray(mask).save(folder / name / "mask.png")
    file = folder / name / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def merge(folder: Path, *files: str, more: tuple[str, ...] = ()) -> list[dict]:
    out = folder / "out" / "both.jsonl"
    assert main(["data", "merge", *files, "--out", str(out), *more]) == 0
    assert not read_jsonl(file=out).problems
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_duplicates_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The square is a polygon in a, and a mask image or an RLE in b."""
    rle = rle_to_json(encode(np.pad(np.ones((3, 3), bool), ((1, 4), (1, 6)))))
    a = write(tmp_path, "a", row("the square", SQUARE), row("no dog"), row("x", SQUARE, image="2.png"))
    b = write(
        tmp_path,
        "b",
        row("The  Square", rle),
        row("no dog"),
        row("x", OTHER, image="2.png"),
        row("new", "mask.png", image="./1.png"),
    )
    rows = merge(tmp_path, a, b)
    assert [(one["text"], one["image"]) for one in rows] == [
        ("the square", "../a/1.png"),
        ("no dog", "../a/1.png"),
        ("x", "../a/2.png"),
        ("x", "../b/2.png"),
        ("new", "../a/1.png"),
    ]
    assert rows[4]["targets"] == ["../b/mask.png"]
    printed = capsys.readouterr().out
    assert "5 rows, 3 images" in printed and "dropped duplicates: 2" in printed


def test_conflicts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = write(tmp_path, "a", row("other", OTHER), row("the dog", SQUARE))
    b = write(tmp_path, "b", row("the dog", OTHER), row("other"), row("other", OTHER))
    out = tmp_path / "both.jsonl"
    assert main(["data", "merge", a, b, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"{a}, line 2 and {b}, line 1" in error and "1 more such pair" in error and "--keep first" in error
    assert not out.exists()
    assert [one["targets"] for one in merge(tmp_path, a, b, more=("--keep", "first"))] == [[OTHER], [SQUARE]]
    assert "dropped conflicts (--keep first): 2" in capsys.readouterr().out
    both = merge(tmp_path, a, b, more=("--keep", "both", "--overwrite"))
    assert [one["targets"] for one in both] == [[OTHER], [SQUARE], [OTHER], None]


def test_ids_stay_unique(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Instance 0 is the square in a and the other square in b. Instance 1 is the same in both."""
    a = write(tmp_path, "a", row("s", SQUARE, instance_ids=["0"], expression_id=1, object_id="x"))
    b = write(
        tmp_path,
        "b",
        row("o", OTHER, instance_ids=["0"], expression_id=1, object_id="x"),
        row("both", OTHER, SQUARE, instance_ids=["0", "1"], expression_id=2, object_id="x"),
    )
    rows = merge(tmp_path, a, b)
    assert [one["instance_ids"] for one in rows] == [["0"], ["0#2"], ["0#2", "1"]]
    assert [one["expression_id"] for one in rows] == ["1", "1#2", "2"]
    assert [one["object_id"] for one in rows] == ["x", "x#2", "x#2"]
    assert "renamed ids: 3" in capsys.readouterr().out


def test_images_in_several_splits_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = write(tmp_path, "a", row("s", SQUARE, split="train"))
    b = write(tmp_path, "b", row("t", SQUARE, split="val"))
    merge(tmp_path, a, b)
    assert "1 images are in several splits (first: ../a/1.png)" in capsys.readouterr().out


def test_unusable_mask(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = write(tmp_path, "a", row("s", SQUARE), row("s", "gone.png"))
    assert main(["data", "merge", a, "--out", str(tmp_path / "o.jsonl")]) == 1
    assert f"{a}, line 2: " in capsys.readouterr().err
