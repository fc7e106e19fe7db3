"""SA-Co's format: an entry per phrase, negatives by absence, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from refseg.datasets.readers import read_saco
from refseg.datasets.targets import resolve
from refseg.errors import DataError

HEAD = {"file_name": "1.png", "height": 8, "width": 10, "is_instance_exhaustive": 1}
RLE = {"size": [8, 10], "counts": [5, 3, 72]}


def write(folder: Path, images: list[dict], annotations: list[dict]) -> Path:
    file = folder / "gold.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def region(image_id: int, **more: Any) -> dict:
    return {"image_id": image_id, "segmentation": RLE, "bbox": [0.1, 0.1, 0.5, 0.5], "iscrowd": 0, **more}


def test_records(tmp_path: Path) -> None:
    """Phrases of an image form one record. Equal masks are one instance, and a crowd region is an instance of its
    own."""
    images = [{**HEAD, "id": n, "text_input": text} for n, text in enumerate(["dog", "cat", "a dog ", "dogs"])]
    images.append({**HEAD, "id": 9, "text_input": "dog", "file_name": "2.png"})
    file = write(tmp_path, images, [region(0), region(2), region(3, iscrowd=1)])
    annotations = read_saco(file=file)
    first, second = annotations.records
    assert [(e.expression_id, e.text, e.referents) for e in first.expressions] == [
        ("0", "dog", (0,)),
        ("1", "cat", ()),
        ("2", "a dog", (0,)),
        ("3", "dogs", (1,)),
    ]
    assert [one.is_crowd for one in first.instances] == [False, True]
    assert second.image_path == "2.png" and not second.expressions[0].referents
    assert not annotations.problems


def test_left_out(tmp_path: Path) -> None:
    """Entries that are not exhaustive are a notice. Damaged ones are problems, and others go on."""
    images: list[Any] = [
        {**HEAD, "id": 0, "text_input": "dog", "is_instance_exhaustive": 0},
        {**HEAD, "id": 1, "text_input": " "},
        {**HEAD, "id": 2, "text_input": "bad mask"},
        {**HEAD, "id": 2, "text_input": "twice"},
        {**HEAD, "id": 3, "text_input": "other size", "height": 9},
        7,
        {**HEAD, "id": 4, "text_input": "good"},
    ]
    images[4], images[6] = images[6], images[4]
    annotations = read_saco(
        file=write(tmp_path, images, [region(2, segmentation={"size": [1, 1], "counts": [1]}), region(77), {"id": 1}])
    )
    assert [e.text for record in annotations.records for e in record.expressions] == ["good"]
    assert [problem.is_notice for problem in annotations.problems] == [False, True, *[False] * 6]
    said = " ".join(map(str, annotations.problems))
    for part in (
        "exhaustively",
        "no text_input",
        "RLE of size",
        "of an earlier entry",
        "not an object",
        "no entry",
        "no image_id",
    ):
        assert part in said, part


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": 3, "annotations": []}', "{"])
def test_errors(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_saco(file=tmp_path / "a.json")


def test_file_as_data_set(tmp_path: Path) -> None:
    """A JSON file is SA-Co's if it has a `text_input`, wherever in the file, and SeqTR's otherwise."""
    file = write(tmp_path, [{"padding": "x" * 3_000_000, **HEAD, "id": 0, "text_input": "dog"}], [])
    assert resolve(str(file))[0].annotations["format"] == "saco"
    (tmp_path / "s.json").write_text("{}")
    assert resolve(str(tmp_path / "s.json"))[0].annotations["format"] == "seqtr"
