import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg.datasets.readers import read_jsonl
from refseg.datasets.readers.checks import decode_runs
from refseg.datasets.store import from_annotations
from refseg.errors import DataError

SQUARE = [[1, 1, 3, 1, 3, 3, 1, 3]]


def write(folder: Path, *rows: object) -> Path:
    file = folder / "a.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def row(**changes: object) -> dict:
    return {"image": "a.png", "size": [8, 9], "text": "a box", "targets": [SQUARE], **changes}


def test_rows_group_by_image_and_share_instances(tmp_path: Path) -> None:
    """Rows 1, 3 and 4 are about a.png with instances 7 and 8. Row 3 refers to both, row 4 to nothing."""
    file = write(
        tmp_path,
        row(instance_ids=[7]),
        row(image="b.png"),
        row(targets=[SQUARE, SQUARE], instance_ids=[8, 7], expression_id="x", tags={"skill": "group"}),
        row(targets=None),
    )
    a, b = read_jsonl(file=file).records
    assert a.image_path == "a.png" and a.size == (8, 9)
    assert [instance.instance_id for instance in a.instances] == ["7", "8"]
    assert [expression.referents for expression in a.expressions] == [(0,), (1, 0), ()]
    assert a.expressions[1].expression_id == "x" and a.expressions[1].tags == {"skill": "group"}
    assert len(b.expressions) == 1


def test_instances_without_ids_are_all_different(tmp_path: Path) -> None:
    (record,) = read_jsonl(file=write(tmp_path, row(), row(targets=[SQUARE, SQUARE]))).records
    assert len(record.instances) == 3
    assert [expression.referents for expression in record.expressions] == [(0,), (1, 2)]


def test_splits_and_objects(tmp_path: Path) -> None:
    """Expressions with the same referents describe one object. Each one without referents is its own object."""
    rows = [
        row(split="train", instance_ids=[1]),
        row(split="val", instance_ids=[1]),
        row(targets=[]),
        row(targets=None),
    ]
    (record,) = read_jsonl(file=write(tmp_path, *rows)).records
    assert [e.split for e in record.expressions] == ["train", "val", None, None]
    objects = [e.object_id for e in record.expressions]
    assert objects[0] == objects[1] and len(set(objects)) == 3


def test_size_from_the_image_file(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "a.png")
    without = row()
    del without["size"]
    assert read_jsonl(file=write(tmp_path, without)).records[0].size == (5, 7)
    (tmp_path / "a.png").write_bytes(b"no image")
    (problem,) = read_jsonl(file=write(tmp_path, without)).problems
    assert "the row has no size, and its image is corrupt" in str(problem)


def test_unreadable_image_of_a_row_without_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block forever, an EPS file would start Ghostscript, and decoders may raise anything."""
    without = {key: value for key, value in row().items() if key != "size"}

    def message() -> str:
        (problem,) = read_jsonl(file=write(tmp_path, without)).problems
        return str(problem)

    os.mkfifo(tmp_path / "a.png")
    assert "a pipe or a device" in message()
    (tmp_path / "a.png").unlink()
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png", format="EPS")
    assert "unknown format" in message()

    def fail(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("no such mode")

    monkeypatch.setattr(Image, "open", fail)
    assert "no such mode" in message()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"image": ', "not JSON"),
        ("[1]", "a row is an object"),
        ({"image": "a.png", "targets": None}, "'text' is missing"),
        (row(text=3), "'text' has the wrong type int"),
        (row(text="  "), "field 'text' is empty"),
        (row(text="\ud800"), "half a character"),
        (row(image=""), "field 'image' is empty"),
        (row(target=[]), "unknown field 'target'"),
        (row(instance_ids=[1, 2]), "2 instance_ids for 1 targets"),
        (row(size=[8]), "size must be"),
        (row(split=3), "'split' has the wrong type int"),
        (row(targets=[[[1, 2, 3, 4]]]), "at least 3 points"),
        (row(targets=[5]), "a target is a list of polygons"),
        (row(targets=[{"box": [1, 2, 0, 4]}]), "a box is [x, y, width, height] with an area, not [1, 2, 0, 4]"),
    ],
)
def test_bad_rows_are_skipped_and_reported(tmp_path: Path, bad: object, says: str) -> None:
    result = read_jsonl(file=write(tmp_path, row(), bad, row(text="third")))
    assert [e.text for record in result.records for e in record.expressions] == ["a box", "third"]
    (problem,) = result.problems
    assert "a.jsonl, line 2" in str(problem) and says in str(problem)


def test_contradicting_rows(tmp_path: Path) -> None:
    """Rows 2-4 contradict row 1: another size, another mask of the same instance, and the same expression id."""
    first = row(expression_id="x", instance_ids=[1])
    other = [[0, 0, 5, 0, 5, 5]]
    result = read_jsonl(file=write(tmp_path, first, row(size=[9, 9]), row(targets=[other], instance_ids=[1]), first))
    assert [p.message.split(" (")[0] for p in result.problems] == [
        "size is [9, 9], but an earlier row of a.png says [8, 9]",
        "instance_id '1' stands for two different masks of a.png",
        "expression_id 'x' is taken by an earlier row",
    ]
    assert len(result.records[0].expressions) == len(result.records[0].instances) == 1


def test_one_id_for_two_masks_of_a_row(tmp_path: Path) -> None:
    """A user may write class names as ids. Without an error the second mask would be lost."""
    other = [[0, 0, 5, 0, 5, 5]]
    result = read_jsonl(
        file=write(
            tmp_path,
            row(targets=[SQUARE, other], instance_ids=["dog", "dog"]),
            row(targets=[SQUARE] * 2, instance_ids=[1, 1]),
        )
    )
    assert "instance_id 'dog' stands for two different masks" in str(result.problems[0])
    assert len(result.problems) == 1 and len(result.records[0].instances) == 1


def test_runs_of_zero_in_targets(tmp_path: Path) -> None:
    """The runs [2, 3, 0, 4, 63] of 8 x 9 pixels become [2, 3 + 4, 63]. A run beyond the image is a problem."""
    target = {"size": [8, 9], "counts": [2, 3, 0, 4, 63]}
    result = read_jsonl(file=write(tmp_path, row(targets=[target]), row(targets=[{**target, "counts": [0, 73, -1]}])))
    assert decode_runs(result.records[0].instances[0].segmentation["counts"]).tolist() == [2, 7, 63]
    assert "do not add up to 8 x 9 pixels" in str(result.problems[0])


def test_object_ids(tmp_path: Path) -> None:
    """Negatives of an object refer to nothing and still belong to it, as in R-RefCOCO. Ids from the file never collide
    with ids that the reader makes."""
    rows = [
        row(instance_ids=[1], object_id="0"),
        row(targets=None, object_id="0"),
        row(targets=None, object_id=0),
        row(instance_ids=[1]),
        row(targets=None),
    ]
    (record,) = read_jsonl(file=write(tmp_path, *rows)).records
    objects = [e.object_id for e in record.expressions]
    assert objects[:3] == ["0"] * 3 and len(set(objects)) == 3
    result = from_annotations(read_jsonl(file=write(tmp_path, *rows)))
    assert [result.expression(i).object_id for i in range(5)] == objects
    (problem,) = read_jsonl(file=write(tmp_path, row(object_id=""))).problems
    assert "field 'object_id' is empty" in str(problem)


def test_byte_order_mark(tmp_path: Path) -> None:
    file = write(tmp_path, row())
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_jsonl(file=file).records) == 1


def test_endless_brackets_and_huge_sizes(tmp_path: Path) -> None:
    result = read_jsonl(file=write(tmp_path, row(), "[" * 100_000, row(size=[10**12, 4])))
    assert len(result.problems) == 2 and len(result.records) == 1


def test_opened_images_are_listed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "b.png")
    without = {k: v for k, v in row(image="b.png").items() if k != "size"}
    assert read_jsonl(file=write(tmp_path, row(), without)).opened == [str(tmp_path / "b.png")]


def test_problems_have_the_split_of_their_row(tmp_path: Path) -> None:
    result = read_jsonl(file=write(tmp_path, row(split="val", text=""), row(text=""), "{"))
    assert [problem.split for problem in result.problems] == ["val", "?", "?"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refseg data refshapes"):
        read_jsonl(file=tmp_path / "refshapes.jsonl")
    with pytest.raises(DataError, match="docs/data"):
        read_jsonl(file=tmp_path / "own.jsonl")


def test_reading_needs_no_torch() -> None:
    code = "import sys, refseg.datasets.annotations, refseg.datasets.masks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
