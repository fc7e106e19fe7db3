import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg.datasets.jsonl import read_jsonl
from refseg.errors import DataError

SQUARE = [[1, 1, 3, 1, 3, 3, 1, 3]]


def write(folder: Path, *rows: object) -> Path:
    file = folder / "a.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def row(**changes: object) -> dict:
    return {"image": "a.png", "size": [8, 9], "text": "a box", "targets": [SQUARE], **changes}


def test_rows_group_by_image_and_share_instances(tmp_path: Path) -> None:
    """Rows 1, 3 and 4 are of image a.png: instances 7 and 8, the third row refers to both, the fourth to nothing."""
    file = write(
        tmp_path,
        row(instance_ids=[7]),
        row(image="b.png"),
        row(targets=[SQUARE, SQUARE], instance_ids=[8, 7], expression_id="x", tags={"skill": "group"}),
        row(targets=None),
    )
    a, b = read_jsonl(file)
    assert a.image_path == str(tmp_path / "a.png") and a.size == (8, 9)
    assert [instance.instance_id for instance in a.instances] == ["7", "8"]
    assert [expression.referents for expression in a.expressions] == [(0,), (1, 0), ()]
    assert a.expressions[1].expression_id == "x" and a.expressions[1].tags == {"skill": "group"}
    assert len(b.expressions) == 1


def test_instances_without_ids_are_all_different(tmp_path: Path) -> None:
    (record,) = read_jsonl(write(tmp_path, row(), row(targets=[SQUARE, SQUARE])))
    assert len(record.instances) == 3
    assert [expression.referents for expression in record.expressions] == [(0,), (1, 2)]


def test_only_the_asked_split(tmp_path: Path) -> None:
    file = write(tmp_path, row(split="train"), row(split="val", text="other"))
    assert read_jsonl(file, "val")[0].expressions[0].text == "other"
    with pytest.raises(DataError, match=r"no row has split 'test' \(found: train, val\)"):
        read_jsonl(file, "test")


def test_the_size_may_come_from_the_image(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "a.png")
    without = row()
    del without["size"]
    assert read_jsonl(write(tmp_path, without))[0].size == (5, 7)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"image": ', "not JSON"),
        ("[1]", "a row is an object"),
        ({"image": "a.png", "targets": None}, "'text' is missing"),
        (row(text=3), "'text' has the wrong type int"),
        (row(text="  "), "the text is empty"),
        (row(target=[]), "unknown field 'target'"),
        (row(instance_ids=[1, 2]), "2 instance_ids for 1 targets"),
        (row(size=[8]), "size must be"),
        (row(targets=[[[1, 2, 3, 4]]]), "at least 3 points"),
        (row(targets=[5]), "a target is a list of polygons"),
    ],
)
def test_bad_rows_name_file_line_and_field(tmp_path: Path, bad: object, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_jsonl(write(tmp_path, row(), bad))
    assert "a.jsonl, line 2" in str(caught.value)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refseg data refshapes"):
        read_jsonl(tmp_path / "none.jsonl")


def test_reading_needs_no_torch() -> None:
    code = "import sys, refseg.datasets.jsonl, refseg.datasets.masks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
