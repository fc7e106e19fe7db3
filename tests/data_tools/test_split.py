"""`refseg data split`: rows of an image stay together, and each split has its share of every kind of phrase."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refseg.cli import main
from refseg.data_tools.split import kind_of, split_by_image
from refseg.datasets.readers import read_jsonl
from refseg.errors import DataError, UsageError

TARGET = [[1, 1, 4, 1, 4, 4]]


def row(image: str, targets: int = 1, **more: object) -> dict:
    return {"image": image, "size": [8, 10], "text": "a dog", "targets": [TARGET] * targets or None, **more}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60), st.integers(0, 3), st.data()
)
def test_images_stay_together_and_no_split_is_empty(rows: list, seed: int, data: st.DataObject) -> None:
    given = [row(f"{image}.jpg", targets) for image, targets in rows]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    images = {one["image"] for one in given}
    if len(images) < 3:
        with pytest.raises(DataError, match="too few for 3 splits"):
            split_by_image(given, shares, seed)
        return
    splits = split_by_image(given, shares, seed)
    assert set(splits) == set(shares)
    split_of = {one["image"]: split for one, split in zip(given, splits, strict=True)}
    assert [split_of[one["image"]] for one in given] == splits
    shuffled = data.draw(st.permutations(given))
    assert split_by_image(shuffled, shares, seed) == [split_of[one["image"]] for one in shuffled]


@pytest.mark.parametrize("seed", range(5))
def test_kinds_follow_the_shares(seed: int) -> None:
    """100 images: 20 hold the negatives and 10 the phrases with several targets. Val's goals are 2 and 1 of them."""
    given = [row(f"{n}.jpg") for n in range(100)]
    given += [row(f"{n}.jpg", 0) for n in range(20)] + [row(f"{n}.jpg", 2) for n in range(20, 30)]
    splits = split_by_image(given, {"train": 0.9, "val": 0.1}, seed)
    in_val = Counter(kind_of(one) for one, split in zip(given, splits, strict=True) if split == "val")
    assert len({one["image"] for one, split in zip(given, splits, strict=True) if split == "val"}) == 10
    assert in_val == {1: 10, 0: 2, 2: 1}


def test_seed_changes_the_images() -> None:
    given = [row(f"{n}.jpg") for n in range(40)]
    shares = {"train": 0.75, "val": 0.25}
    assert split_by_image(given, shares, 0) == split_by_image(given, shares, 0) != split_by_image(given, shares, 1)


@pytest.mark.parametrize("shares", [{"val": 0.1}, {"train": 1.0, "val": 0.0}, {"train": 1.1, "val": -0.1}])
def test_invalid_shares(shares: dict) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split_by_image([row("1.jpg"), row("2.jpg")], shares, 0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """b.png is a copy of a.png, so both are in one split. Paths are relative to the new file."""
    for name, color in {"a": 1, "b": 1, "c": 2, "d": 3}.items():
        Image.new("RGB", (10, 8), (color, 0, 0)).save(tmp_path / f"{name}.png")
    given = [row("a.png", split="val"), row("b.png", 2), row("c.png", 0), row("d.png"), row("a.png", 0)]
    file, out = tmp_path / "own.jsonl", tmp_path / "new" / "split.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in given))
    command = ["data", "split", str(file), "--val", "0.3", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 rows had a split" in printed and "1 image files are copies" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["image"] for one in rows] == [f"../{name}.png" for name in "abcda"]
    assert rows[0]["split"] == rows[1]["split"] == rows[4]["split"]
    assert {one["split"] for one in rows} == {"train", "val"}
    assert not read_jsonl(file=out).problems
    assert main(command) == 1 and "--overwrite" in capsys.readouterr().err


def test_invalid_row(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "1.jpg", "text": "dog"}\n')
    assert main(["data", "split", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "a.jsonl, line 1: field 'targets' is missing" in error and "refseg data check" in error
