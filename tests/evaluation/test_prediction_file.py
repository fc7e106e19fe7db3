from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.prediction_file import (
    Answer,
    PredictionWriter,
    merge_parts,
    part_file,
    read_header,
    read_predictions,
    row_to_json,
    write_predictions,
)
from refseg.instance import Instance


def rle(seed: int = 0, size: tuple[int, int] = (6, 7)) -> dict:
    return coco_mask.encode(np.asfortranarray(np.random.default_rng(seed).integers(0, 2, size, np.uint8)))


FULL = Answer(
    "a/1",
    rle(1),
    0.25,
    [[0.0, 1.5, 3.0, 2.0, 0.75]],
    [Instance(rle(2), 0.5, [0.125, 1.0]), Instance(rle(3), 1.0)],
)
BARE = Answer("b", rle(4))
NO_BOX = Answer("c", rle(5), 1.0, [], [])
HEADER = {"config": "x.py", "checkpoint": {"sha256": "00"}}


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
@pytest.mark.parametrize("header", [None, HEADER])
def test_round_trip(name: str, header: dict | None, tmp_path: Path) -> None:
    file = tmp_path / "new" / name
    write_predictions(file, [FULL, BARE, NO_BOX], header=header)
    assert list(read_predictions(file)) == [FULL, BARE, NO_BOX]
    assert read_header(file) == (header or {})
    content = file.read_bytes()
    write_predictions(file, [FULL, BARE, NO_BOX], header=header)
    assert file.read_bytes() == content  # no names or times in it


def test_optional_fields(tmp_path: Path) -> None:
    assert set(row_to_json(BARE)) == {"expression_id", "mask"}
    assert set(row_to_json(FULL)["instances"][1]) == {"mask", "score"}
    nulls = {**row_to_json(BARE), "no_target_prob": None, "boxes": None, "instances": None}
    (tmp_path / "p.jsonl").write_text(f"\n{json.dumps(nulls)}\n\n")
    assert list(read_predictions(tmp_path / "p.jsonl")) == [BARE]


def test_instances_in_files(tmp_path: Path) -> None:
    """Words have 4 decimals, instances without a pixel are left out, and masks may be made on request."""
    mask = np.ones((6, 7), bool)
    words, empty = Instance(mask, 2 / 3, [1 / 3, 0.00004]), Instance(~mask, 0.9)
    write_predictions(tmp_path / "p.jsonl", [Answer("a", rle(), raw_instances=[words, empty, Instance(mask, 0.5)])])
    (answer,) = read_predictions(tmp_path / "p.jsonl")
    assert [(one.score, one.words) for one in answer.raw_instances] == [(2 / 3, [0.3333, 0.0]), (0.5, None)]
    assert all(one.mask.all() for one in answer.raw_instances)


def test_other_forms_of_ids_and_masks(tmp_path: Path) -> None:
    """Ids may be integers, and RLEs may be uncompressed: 2 off, 3 on, 37 off of 42 pixels."""
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"expression_id": 12, "mask": {"size": [6, 7], "counts": [2, 3, 37]}}))
    (row,) = read_predictions(file)
    assert row.expression_id == "12" and coco_mask.area(row.source) == 3 and isinstance(row.source["counts"], bytes)


def test_boxes_without_masks(tmp_path: Path) -> None:
    """`mask` may be null or absent in rows with boxes."""
    rows = [Answer("a", None, boxes=[[0.0, 1.0, 2.0, 3.0, 0.5]]), Answer("b", None, boxes=[])]
    write_predictions(tmp_path / "p.jsonl", rows)
    assert list(read_predictions(tmp_path / "p.jsonl")) == rows
    (tmp_path / "p.jsonl").write_text('{"expression_id": "b", "boxes": []}')
    assert list(read_predictions(tmp_path / "p.jsonl")) == rows[1:]


def test_byte_order_mark(tmp_path: Path) -> None:
    """Some editors write one before the first line, which may be a header."""
    file = tmp_path / "p.jsonl"
    write_predictions(file, [BARE], header=HEADER)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert list(read_predictions(file)) == [BARE] and read_header(file) == HEADER


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_predictions(tmp_path / "p.jsonl", [BARE])

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"p.jsonl cannot be read \(Permission denied\)"):
        list(read_predictions(tmp_path / "p.jsonl"))


def test_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    write_predictions(file, [BARE])
    before = file.read_bytes()
    with pytest.raises(KeyError), PredictionWriter(file) as writer:
        writer.write(FULL)
        raise KeyError
    with pytest.raises(ValueError):
        write_predictions(file, [Answer("a", rle(), float("nan"))])
    with pytest.raises(TypeError):
        write_predictions(file, [BARE], header={"not": object()})
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_streaming(tmp_path: Path) -> None:
    """A row is written before the next one is made, and yielded before the next line is read."""
    file, alive = tmp_path / "p.jsonl", []

    def rows() -> Iterator[Answer]:
        for number in range(3):
            alive.append(number)
            yield Answer(str(number), rle(number))

    write_predictions(file, rows())
    file.write_bytes(file.read_bytes() + b"broken")
    read = read_predictions(file)
    assert [next(read).expression_id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"p.jsonl, line 4: not JSON"):
        next(read)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expression_id": None}, "expression_id must be a string or an integer, not nothing"),
        ({"expression_id": ""}, "expression_id must be"),
        ({"expression_id": True}, "expression_id must be"),
        ({"no_target_probs": 1}, "unknown field 'no_target_probs'"),
        ({"mask": None}, "mask is missing. Only rows with boxes"),
        ({"mask": 3}, "mask must be an RLE"),
        ({"mask": {"counts": "a"}}, "mask.size must be"),
        ({"mask": {"size": [2, -2], "counts": "a"}}, "mask.size must be"),
        ({"mask": {"size": [2.0, 2], "counts": "a"}}, "mask.size must be"),
        ({"mask": {"size": [10**6, 10**6], "counts": "a"}}, "larger than any image"),
        ({"mask": {"size": [2, 2]}}, "mask: an RLE has size and counts"),
        ({"mask": {"size": [2, 2], "counts": "5"}}, "do not add up to 2 x 2"),
        ({"mask": {"size": [2, 2], "counts": "\u00e9"}}, "mask: "),
        ({"mask": {"size": [2, 2], "counts": "o"}}, "compressed form"),
        ({"mask": {"size": [2, 2], "counts": [5, -1]}}, "do not add up"),
        ({"mask": {"size": [2, 2], "counts": [2**70]}}, "mask: "),
        ({"no_target_prob": 1.5}, r"no_target_prob must be null or in \[0, 1\], not 1.5"),
        ({"no_target_prob": "0.5"}, "no_target_prob"),
        ({"no_target_prob": True}, "no_target_prob"),
        ({"boxes": {}}, "boxes must be a list"),
        ({"boxes": [[0, 0, 1, 1]]}, "boxes: a box must be"),
        ({"boxes": [[0, 0, -1, 1, 1]]}, "boxes: a box must be"),
        ({"boxes": [[0, 0, 1, 1, 10**400]]}, "boxes: a box must be"),
        ({"instances": [{"score": 1}]}, r"instances\[0\].mask must be an RLE"),
        ({"instances": [{"mask": {"size": [1, 1], "counts": [1]}}]}, r"instances\[0\].score"),
        (
            {"instances": [{"mask": {"size": [1, 1], "counts": [1]}, "score": 1, "words": ["a"]}]},
            "words must be numbers",
        ),
        ({"instances": [{"box": 1}]}, r"instances\[0\] must be an object with"),
    ],
)
def test_invalid_fields(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (row_to_json(BARE), {**row_to_json(BARE), **changes})))
    with pytest.raises(DataError, match=rf"p.jsonl, line 2: .*{says}"):
        list(read_predictions(file))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[1]", "a row must be an object, not list"),
        (b"{", "not JSON"),
        (b'{"expression_id": "\xff"}', "not JSON"),
        (b'{"no_target_prob": NaN}', "NaN is not JSON"),
        (b'{"no_target_prob": 1e999}', "must be a string or"),
        (b'{"expression_id": 1}', "mask is missing"),
        (b"[" * 100_000, "not JSON"),
        (b'{"expression_id": "1", "boxes": [], "boxes": []}', "the key 'boxes' occurs twice in an object"),
        (b'{"expression_id": "1", "mask": {"size": [1, 1], "counts": [1], "size": [1, 1]}}', "the key 'size' occurs"),
        (b'{"refseg": {}}', "only the first line can be a header"),
    ],
)
def test_invalid_lines(line: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(json.dumps(row_to_json(BARE)).encode() + b"\n" + line)
    with pytest.raises(DataError, match=rf"line 2: .*{says}"):
        list(read_predictions(file))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such prediction file"):
        list(read_predictions(tmp_path / "none.jsonl"))
    whole = gzip.compress(b"".join(json.dumps(row_to_json(Answer(str(i), rle(i)))).encode() for i in range(99)))
    for number, content in enumerate((whole[:-20], b"plain", whole[:50] + b"??" + whole[52:])):
        (tmp_path / f"{number}.gz").write_bytes(content)
        with pytest.raises(DataError):
            list(read_predictions(tmp_path / f"{number}.gz"))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert list(read_predictions(tmp_path / "empty.jsonl")) == [] and read_header(tmp_path / "empty.jsonl") == {}


def test_merge_parts(tmp_path: Path) -> None:
    """The sampler gave row 0 to both processes to make their shares equal."""
    file = tmp_path / "p.jsonl.gz"
    parts = [part_file(file, rank) for rank in range(2)]
    rows = [Answer(str(number), rle(number), number / 4) for number in range(3)]
    write_predictions(parts[0], [rows[0], rows[2]], header=HEADER)
    write_predictions(parts[1], [rows[1], rows[0]], header=HEADER)
    assert merge_parts(parts, file) == 3
    assert [row.expression_id for row in read_predictions(file)] == ["0", "2", "1"] and read_header(file) == HEADER
    assert list(tmp_path.iterdir()) == [file]


def test_merge_parts_of_different_runs(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    write_predictions(part_file(file, 0), [BARE], header=HEADER)
    write_predictions(part_file(file, 1), [FULL], header={"config": "y.py"})
    with pytest.raises(DataError, match="not from one run"):
        merge_parts([part_file(file, 0), part_file(file, 1)], file)
    with pytest.raises(DataError, match="no such prediction file"):
        merge_parts([part_file(file, 0), part_file(file, 2)], file)
    assert not file.exists() and part_file(file, 0).exists()


def test_torch_and_numpy_numbers(tmp_path: Path) -> None:
    row = Answer("a", rle(), np.float32(0.5), np.ones((1, 5), np.float32))  # type: ignore[arg-type]
    write_predictions(tmp_path / "p.jsonl", [row])
    assert next(read_predictions(tmp_path / "p.jsonl")) == Answer("a", rle(), 0.5, [[1.0] * 5])
