"""SeqTR's layout, which SeqTR, C3VG, DeRIS and PropVG use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refer_files import SIZE, square
from refseg.datasets.annotations import open_annotations
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers import read_seqtr
from refseg.datasets.samplers import SampleKey
from refseg.errors import ConfigError, DataError
from refseg.evaluation.scorer import open_data
from refseg.records import Annotations

NAME = "COCO_train2014_{:012d}.jpg"
NOTHING = {"id": -1, "bbox": None, "category_id": None, "iscrowd": None, "bbox_mode": 1, "empty": True}


def entry(image_id: Any, *texts: str, x: float = 1, **changes: Any) -> dict:
    """Return an entry with expressions about the 2 x 2 square at (x, 1)."""
    height, width = SIZE
    made = {"image_id": image_id, "height": height, "width": width, "bbox": [x, 1, 2, 2], "mask": [square(x, 1)]}
    return {**made, "expressions": list(texts or ("it",)), **changes}


def part(id: int, x: float, **changes: Any) -> dict:
    return {"id": id, "segmentation": [square(x, 1)], "bbox": [x, 1, 2, 2], "empty": False, **changes}


def read(folder: Path, content: Any, **more: Any) -> Annotations:
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return read_seqtr(file=file, **more)


def test_entries_of_an_image_are_one_record(tmp_path: Path) -> None:
    """Entries about one object repeat its mask: image 7 has three entries and two instances."""
    content = {
        "train": [entry(7, "Left dog", "the dog"), entry(9, "cat"), entry(7, "other", x=5)],
        "val": [entry(7, "dog again")],
    }
    result = read(tmp_path, content)
    one, two = result.records
    assert (one.image_path, one.size, len(one.instances)) == (NAME.format(7), SIZE, 2)
    assert one.instances[1].box == (5, 1, 2, 2) and {i.instance_id for i in one.instances} == {"mask 0", "mask 1"}
    assert [(e.expression_id, e.text, e.referents, e.split, e.object_id) for e in one.expressions] == [
        ("train_0_0", "Left dog", (0,), "train", "train_0"),
        ("train_0_1", "the dog", (0,), "train", "train_0"),
        ("train_2_0", "other", (1,), "train", "train_2"),
        ("val_0_0", "dog again", (0,), "val", "val_0"),
    ]
    assert [e.text for e in two.expressions] == ["cat"] and not result.problems


def test_masks_of_every_form(tmp_path: Path) -> None:
    mask = decode(to_rle([square(1, 1)], SIZE))
    rle = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": list(SIZE), "counts": rle["counts"].decode()}
    result = read(tmp_path, {"train": [entry(1, mask=form) for form in ([square(1, 1)], text, [text])]})
    assert not result.problems and len(result.records[0].instances) == 3
    for instance in result.records[0].instances:
        assert (decode(to_rle(instance.segmentation, SIZE)) == mask).all()


def test_annotations_instead_of_a_mask(tmp_path: Path) -> None:
    """gRefCOCO's entries have several referents, none, or a crowd. A list of lists has one list for each expression."""
    content = {
        "train": [
            entry(1, expressions={"raw": "both"}, annotations=[part(11, 1), part(12, 4, iscrowd=1)]),
            entry(1, expressions={"raw": "no dog"}, annotations=[NOTHING]),
            entry(1, "one", "none", "two", annotations=[[part(11, 1)], [NOTHING], [part(12, 4)]]),
            entry(1, "nothing either", annotations=[]),
        ]
    }
    result = read(tmp_path, content)
    record = result.records[0]
    assert not result.problems
    assert [(i.instance_id, i.is_crowd) for i in record.instances] == [("11", False), ("12", True)]
    assert [(e.text, e.referents) for e in record.expressions] == [
        *(("both", (0, 1)), ("no dog", ())),
        *(("one", (0,)), ("none", ()), ("two", (1,)), ("nothing either", ())),
    ]


def test_list_of_entries_is_one_object(tmp_path: Path) -> None:
    """R-RefCOCO has the positives and negatives of a ref in one list."""
    negative = entry(1, "cat", annotations=[NOTHING], file_name="x/1.jpg")
    result = read(tmp_path, {"val_rrefcoco": [[entry(1, "dog", file_name="x/1.jpg"), negative]]})
    (record,) = result.records
    assert record.image_path == "x/1.jpg" and {e.object_id for e in record.expressions} == {"val_rrefcoco_0"}
    assert [(e.expression_id, e.referents) for e in record.expressions] == [
        ("val_rrefcoco_0_0_0", (0,)),
        ("val_rrefcoco_0_1_0", ()),
    ]


def test_images_of_mixed_files(tmp_path: Path) -> None:
    content = {"train": [entry(1, data_source="coco"), entry(1, data_source="saiaprtc12")]}
    names = {"coco": "train2014/" + NAME.replace(":", "image_id:"), "saiaprtc12": "saiapr/{image_id}.jpg"}
    result = read(tmp_path, content, image_name=names)
    assert [record.image_path for record in result.records] == ["train2014/" + NAME.format(1), "saiapr/1.jpg"]
    assert result.records[1].expressions[0].tags == {"data_source": "saiaprtc12"}
    del names["coco"]
    (problem,) = read(tmp_path, content, image_name=names).problems
    assert problem.message == "data_source is 'coco', but image_name has only saiaprtc12"
    with pytest.raises(ConfigError, match=r"image_name: '\{id\}' cannot be filled in"):
        read(tmp_path, content, image_name="{id}")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("text", "is a str, not an object"),
        (entry("1"), "image_id is '1', not a whole number, and there is no file_name"),
        (entry(1, height=0), "height and width are 0 and 10"),
        (entry(1, height=9), r"height and width are \[9, 10\], but \[8, 10\] in an earlier entry of COCO"),
        (entry(1, expressions=[]), "expressions is '\\[\\]': it must be a list of texts"),
        (entry(1, expressions=["a", " "]), "it must be a list of texts"),
        (entry(1, mask=[[1, 2]]), "no polygon has 3 points"),
        (entry(1, bbox="x"), "bbox is 'x'"),
        (entry(1, annotations={}), "annotations is a dict, not a list"),
        (entry(1, "a", "b", annotations=[[part(1, 1)]]), "annotations has 1 parts for 2 expressions"),
        (entry(1, annotations=["x"]), "an annotation is a str, not an object"),
        (entry(1, annotations=[part(1, 1, empty="no")]), "empty is 'no'"),
        ({k: v for k, v in entry(1).items() if k != "mask"}, "has neither a mask nor annotations"),
    ],
)
def test_bad_entries_are_skipped_and_reported(tmp_path: Path, bad: Any, says: str) -> None:
    result = read(tmp_path, {"train": [entry(1, "good")], "val": [entry(2), bad]})
    assert [e.text for record in result.records for e in record.expressions] == ["good", "it"]
    (problem,) = result.problems
    assert problem.place == f"{tmp_path / 'instances.json'}, val[1]" and problem.split == "val"
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(str(problem))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "annotation file not found"),
        (b'{"train": [', "truncated, or not JSON"),
        (b"[]", "is not in SeqTR's layout"),
        (b'{"images": 3}', "is not in SeqTR's layout"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "instances.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_seqtr(file=file)


def test_training_and_scoring(tmp_path: Path) -> None:
    """C3VG trains on one expression of each entry, drawn anew in each epoch. Scoring finds the ground truth."""
    content = {"train": [entry(1, "a", "b"), entry(1, "c", x=5)], "val_refcoco_unc": [entry(2, "d")]}
    read(tmp_path, content)
    file = str(tmp_path / "instances.json")
    options = dict(sentences="one_per_object", expressions_per_image=1, image_root="images", pipeline=[])
    data = ReferringDataset(annotations=dict(format="seqtr", file=file), split="train", **options)
    drawn = [{data.record(SampleKey(i, epoch)).expressions[0].text for i in range(len(data))} for epoch in range(20)]
    assert len(data) == 2 and set().union(*drawn) == {"a", "b", "c"} and all("c" in one for one in drawn)
    with pytest.raises(ConfigError, match="image_root is needed"):
        ReferringDataset(annotations=dict(format="seqtr", file=file), pipeline=[])
    assert len(open_data(f"{file}:val_refcoco_unc").truths) == 1
    assert open_annotations(format="seqtr", file=file, image_name="{image_id}.jpg").image_path(0) == "1.jpg"
