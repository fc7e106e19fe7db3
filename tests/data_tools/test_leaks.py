"""`refseg data leaks`: shared images, their share of the training set, and the filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refer_files import annotation, image, ref, square, write_refer
from refseg.cli import main
from refseg.datasets.annotations import open_annotations
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.targets import parse_target


@pytest.fixture
def other(small_set: Any) -> Path:
    """A set with images of the small set: 1 and 2 in val, 3 in test, and 7 in train."""
    folder = small_set.root / "refcoco+"
    places = {1: "val", 2: "val", 3: "test", 7: "train"}
    refs = [ref(number, number, image_id=number, split=split) for number, split in places.items()]
    images, annotations = [image(n) for n in places], [annotation(n, n) for n in places]
    write_refer(folder, refs, images=images, annotations=annotations)
    return folder


def run(capsys: pytest.CaptureFixture, *arguments: Any) -> tuple[int, list[str]]:
    code = main(["data", "leaks", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def test_table(small_set: Any, other: Path, capsys: pytest.CaptureFixture) -> None:
    """Of 6 images, 12 refs, and 18 sentences of train, val shares 2, 4, and 6, and test shares 1, 2, and 3."""
    code, lines = run(capsys, "--train", small_set.root / "refcoco", "--test", other)
    assert code == 0
    val = next(line for line in lines if line.endswith(":val"))
    test = next(line for line in lines if line.endswith(":test"))
    assert "2 of 6 (33.3%)" in val and "4 of 12 (33.3%)" in val and "6 of 18 (33.3%)" in val
    assert "1 of 6 (16.7%)" in test and "2 of 12" in test and "3 of 18" in test
    total = next(line for line in lines if "remain" in line)
    assert "3 of 6 (50.0%)" in total and "9 of 18" in total and "3 images, 9 sentences remain" in total


def test_filter_drops_the_shared_images(small_set: Any, other: Path, capsys: pytest.CaptureFixture) -> None:
    """With the printed filter, the data set drops as many sentences as the table says: 9 of 18."""
    code, lines = run(capsys, "--train", small_set.root / "refcoco", "--test", other, "--fail")
    assert code == 1
    start = lines.index("exclude_images_of=[")
    snippet = "\n".join(lines[start : lines.index("],", start) + 1])
    arguments = eval(f"dict({snippet})")
    dataset = ReferringDataset(
        annotations=small_set.target().annotations,
        image_root=str(small_set.images),
        split="train",
        pipeline=[],
        **arguments,
    )
    assert dataset.metainfo["leak_filter"]["dropped_expressions"] == 9


def test_no_overlap(small_set: Any, other: Path, capsys: pytest.CaptureFixture) -> None:
    code, lines = run(capsys, "--train", small_set.root / "refcoco", "--test", f"{other}:train", "--fail")
    assert code == 0 and "No image is shared." in lines


def test_catalog_names_and_splits(small_set: Any, other: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--train", "refcoco:train,val", "--test", "refcoco+:train", "--data-root", small_set.root]
    code, lines = run(capsys, *arguments)
    assert code == 0 and any("1 of 9 (11.1%)" in line for line in lines)
    assert any("refs='data/refcoco+/refs(unc).p'" in line for line in lines)


def test_same_pixels_under_another_name(small_set: Any, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(small_set.image_file(4)))
    Image.fromarray(pixels).save(tmp_path / "copy.png")
    row = {"image": "copy.png", "size": [8, 10], "text": "it", "targets": [[square(1.0, 1.0)]], "split": "test"}
    file = tmp_path / "my.jsonl"
    file.write_text(json.dumps(row) + "\n")
    arguments = ["--train", small_set.root / "refcoco", "--test", file, "--fail"]
    assert run(capsys, *arguments)[0] == 0
    code, lines = run(capsys, *arguments, "--by-content")
    assert code == 1 and any("1 of 6 (16.7%)" in line for line in lines)
    assert any("misses" in line for line in lines)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("refcocoo:val", "did you mean refcoco"),
        ("refcoco:", "is not SET:SPLIT"),
        ("refcoco:dev", "no expression has split 'dev'"),
    ],
)
def test_error_messages(small_set: Any, capsys: pytest.CaptureFixture, argument: str, says: str) -> None:
    root = str(small_set.root)
    assert main(["data", "leaks", "--train", "refcoco", "--test", argument, "--data-root", root]) == 1
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_path_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    file = tmp_path / "a:b" / "my.jsonl"
    file.write_text(json.dumps({"image": "a.png", "size": [2, 2], "text": "it", "targets": None}) + "\n")
    targets, splits = parse_target(str(file))
    assert splits is None and len(open_annotations(**targets[0].annotations)) == 1
