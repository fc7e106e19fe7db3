"""The tool that makes a small set of real photographs, on made-up files. Nothing is downloaded."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import load_script
from refseg.datasets.masks import encode
from refseg.errors import DataError
from refseg.evaluation.prediction_file import Answer, PredictionWriter

SIZE = (10, 10)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/dev/photos.py")


@pytest.fixture(scope="module")
def table(tool: ModuleType) -> list[dict[str, Any]]:
    return json.loads(tool.TABLE.read_text())


def square(side: int) -> dict:
    """Return the mask of the upper left `side` x `side` pixels."""
    mask = np.zeros(SIZE, bool)
    mask[:side, :side] = True
    return encode(mask)


# Table ----------------------------------------------------------------------------------------------------------------


def test_phrases_of_the_table_are_valid(tool: ModuleType, table: list[dict[str, Any]]) -> None:
    for entry in table:
        for split, kind, text, names in entry["phrases"]:
            assert split in tool.SPLITS and kind in tool.KINDS
            assert set(names) <= set(entry["instances"]), text
            assert bool(names) == (kind != "absent"), text
            assert kind != "group" or len(names) > 1, text


def test_splits_of_a_photograph_share_no_phrase(table: list[dict[str, Any]]) -> None:
    for entry in table:
        texts = [text for _, _, text, _ in entry["phrases"]]
        assert len(texts) == len(set(texts)), entry["name"]


def test_drawn_polygons_are_inside_their_photographs(table: list[dict[str, Any]]) -> None:
    for entry in table:
        height, width = entry["size"]
        for name, value in entry["instances"].items():
            points = np.reshape(value.get("polygon", []), (-1, 2))  # (P, 2)
            assert (points >= 0).all() and (points <= (width, height)).all(), (entry["name"], name)
            assert len(points) >= 4 or "shapes" in value, (entry["name"], name)


# Packages -------------------------------------------------------------------------------------------------------------


def test_read_archive(tool: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.txt", "wheel")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("root/b.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"tar"))
        link = tarfile.TarInfo("root/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert tool.read_archive(tmp_path / "a.whl", "", "a/b.txt") == b"wheel"
    assert tool.read_archive(tmp_path / "a.tar.gz", "root/", "b.txt") == b"tar"
    with pytest.raises(DataError, match="not a regular file"):
        tool.read_archive(tmp_path / "a.tar.gz", "root/", "link.txt")
    with pytest.raises(DataError, match="cannot be read"):
        tool.read_archive(tmp_path / "a.tar.gz", "root/", "none.txt")
    with pytest.raises(DataError, match="cannot be read"):
        tool.read_archive(tmp_path / "none.tar.gz", "root/", "b.txt")


def test_photo_with_polygons_of_its_package_and_drawn_ones(tool: ModuleType, tmp_path: Path) -> None:
    """Two shapes of labelme are one instance. Rows have the polygons of their targets."""
    file = io.BytesIO()
    Image.new("RGB", (10, 10)).save(file, "JPEG")
    shapes = [{"points": [[0, 0], [4, 0], [4, 4]]}, {"points": [[5, 5], [9, 5], [9, 9]]}]
    files = {"a.jpg": file.getvalue(), "a.json": json.dumps({"shapes": shapes}).encode()}
    entry: dict[str, Any] = dict(name="a", source="labelme", size=[10, 10], member="a.jpg", annotations="a.json")
    entry["instances"] = {"dog": {"shapes": [0, 1]}, "ball": {"polygon": [0, 6, 3, 6, 3, 9]}}
    entry["phrases"] = [
        ["train", "group", "the dog and the ball", ["dog", "ball"]],
        ["val", "absent", "the cat", []],
    ]
    photo = tool.read_photo(entry, files.__getitem__)
    file = tool.write_data([photo], tmp_path)
    first, second = [json.loads(line) for line in file.read_text().splitlines()]
    assert first["targets"] == [[[0, 0, 4, 0, 4, 4], [5, 5, 9, 5, 9, 9]], [[0, 6, 3, 6, 3, 9]]]
    assert first["tags"] == {"kind": "group", "phrase": "seen"}
    assert second["targets"] is None and second["tags"] == {"kind": "absent", "phrase": "unseen"}
    assert {path.name for path in tmp_path.iterdir()} == {"images", "photos.jsonl", "sheet.png"}

    with pytest.raises(DataError, match="another version"):
        tool.read_photo(entry | {"size": [10, 11]}, files.__getitem__)


def test_polygons_of_the_quokka(tool: ModuleType) -> None:
    annotations = {"polygons": [{"keypoints": [{"x": 1, "y": 2}, {"x": 3, "y": 4}, {"x": 5, "y": 6}]}]}
    assert tool.shapes_of(annotations) == [[1, 2, 3, 4, 5, 6]]


# Scores ---------------------------------------------------------------------------------------------------------------


def test_accuracy(tool: ModuleType, tmp_path: Path) -> None:
    """Targets are the upper left 4 x 4 pixels. A 3 x 3 mask has IoU 9/16, and a 2 x 2 mask has 4/16.

    Seen: 3 x 3 is correct, 2 x 2 is not, and 4 x 4 with probability 0.9 is rejected: 1 of 3. The absent phrase with an
    empty mask is correct. Unseen: 4 x 4 is correct. Of the absent phrases, the one with probability 0.6 is correct and
    the one with 0.4 is not.
    """
    cases = [
        ("train", "name", True, 3, 0.1),
        ("train", "relation", True, 2, 0.1),
        ("train", "relation", True, 4, 0.9),
        ("train", "absent", False, 0, 0.1),
        ("test", "group", True, 4, 0.1),
        ("test", "absent", False, 4, 0.6),
        ("test", "absent", False, 4, 0.4),
    ]
    polygon = [0, 0, 4, 0, 4, 4, 0, 4]
    rows = [
        {
            "expression_id": str(number),
            "image": "images/a.jpg",
            "size": list(SIZE),
            "text": f"phrase {number}",
            "targets": [[polygon]] if has_target else None,
            "instance_ids": ["a"] if has_target else [],
            "split": split,
            "tags": {"kind": kind, "phrase": "seen" if split == "train" else "unseen"},
        }
        for number, (split, kind, has_target, _, _) in enumerate(cases)
    ]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with PredictionWriter(tmp_path / "predictions.jsonl") as writer:
        for number, (*_, side, probability) in enumerate(cases):
            writer.write(Answer(str(number), square(side), probability))

    data = f"{tmp_path / 'photos.jsonl'}:train,test"
    result = tool.accuracy(tmp_path / "predictions.jsonl", data)
    assert result["seen"]["target"] == {"accuracy": 33.3, "correct": 1, "count": 3}
    assert result["seen"]["absent"] == {"accuracy": 100.0, "correct": 1, "count": 1}
    assert result["unseen"]["target"] == {"accuracy": 100.0, "correct": 1, "count": 1}
    assert result["unseen"]["absent"] == {"accuracy": 50.0, "correct": 1, "count": 2}
    correct = {kind: part["correct"] for kind, part in result["seen"]["by_kind"].items()}
    assert correct == {"name": 1, "relation": 0, "absent": 1}

    # With threshold 0.3, the second unseen absent phrase is rejected as well.
    strict = tool.accuracy(tmp_path / "predictions.jsonl", data, threshold=0.3)
    assert strict["unseen"]["absent"]["correct"] == 2
