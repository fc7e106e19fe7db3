"""`refseg data stats`: counts by hand, and a page that escapes text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from refseg.cli import main
from refseg.data_tools.stats import SIDES, count, facts, grouped, split_table
from refseg.datasets.readers import read_jsonl

SQUARE = [[0, 0, 5, 0, 5, 4, 0, 4]]  # 20 of 80 pixels
SMALL = [[5, 5, 7, 5, 7, 7, 5, 7]]  # 4 of 80 pixels


@pytest.fixture
def own(tmp_path: Path) -> Path:
    rows = [
        {"image": "1.png", "text": "The red dog", "targets": [SQUARE], "instance_ids": ["a"], "split": "train"},
        {"image": "1.png", "text": "the  Red dog", "targets": [SQUARE], "instance_ids": ["a"], "split": "train"},
        {"image": "1.png", "text": "both <b>", "targets": [SQUARE, SMALL], "instance_ids": ["a", "b"], "split": "val"},
        {"image": "2.png", "text": "a cat's tail", "targets": None, "split": "train"},
        {"image": "2.png", "text": "", "targets": None},
        {"image": "2.png", "text": "gone", "targets": ["gone.png"]},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({**row, "size": [8, 10]}) + "\n" for row in rows))
    return file


def test_counts(own: Path) -> None:
    stats = count(read_jsonl(file=own), own.parent)
    table = {row["split"]: list(row.values())[1:] for row in split_table(stats)}
    # images, phrases, no target, one, several, words
    assert table == {
        "(no split)": [1, 1, 0, 1, 0, 1],
        "train": [2, 3, 1, 2, 0, 9],
        "val": [1, 1, 0, 0, 1, 2],
        "all": [2, 5, 1, 3, 1, 12],
    }
    assert stats.words.most_common(3) == [("the", 2), ("red", 2), ("dog", 2)] and stats.words["cat's"] == 1
    assert sorted(stats.mask_shares) == [0.05, 0.25] and len(stats.problems) == 2
    values = facts(stats)
    assert values["phrases"] == "5 (4 different)" and values["targets per phrase"] == "1.00 (at most 2)"
    assert values["object's share of the image"] == "median 15.00% (5.00% to 25.00%)"


def test_groups() -> None:
    assert grouped([300, 512, 3000], SIDES) == {"257-512": 2, "513-1024": 0, "1025-2048": 0, "> 2048": 1}
    assert grouped([], SIDES) == {}


def test_command(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "stats.html"
    assert main(["data", "stats", str(own), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "Most frequent words\n  the 2, red 2, dog 2" in printed and "not counted: 2 rows or masks" in printed
    html = page.read_text()
    assert html.count('<svg class="plot"') == 3 and "<script" not in html and "cat&#39;s" in html


def test_no_usable_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert main(["data", "stats", str(tmp_path / "a.jsonl")]) == 1
    assert "has no usable rows" in capsys.readouterr().err


def test_size_from_image(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    (tmp_path / "a.jsonl").write_text('{"image": "1.png", "text": "x", "targets": null}\n')
    assert count(read_jsonl(file=tmp_path / "a.jsonl"), tmp_path).sizes == {(20, 30): 1}
