"""The quirks of the REFER layout, with hand-made files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refer_files import SIZE, annotation, image, ref, square, write_refer
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers import read_refer
from refseg.errors import DataError
from refseg.records import Annotations


def read(folder: Path, refs: Any, **more: Any) -> Annotations:
    files = write_refer(folder, refs, **more)
    return read_refer(refs=files["refs"], instances=files["instances"])


def test_records_have_all_annotations_of_their_image(tmp_path: Path) -> None:
    """Image 1 has annotations 1, 2 and 3, of which 3 is not referred to. Image 2 has annotation 4."""
    result = read(tmp_path, [ref(7, 2, "Left dog", "the dog"), ref(8, 4, image_id=2, split="val"), ref(9, 1)])
    one, two = result.records
    assert one.image_id == "1" and one.size == SIZE and one.image_path == "COCO_train2014_000000000001.jpg"
    assert [instance.instance_id for instance in one.instances] == ["1", "2", "3"]
    assert one.instances[1].category == "person" and one.instances[1].box == (2.0, 1.0, 2.0, 2.0)
    assert [(e.expression_id, e.text, e.sent, e.referents, e.object_id) for e in one.expressions] == [
        ("7_70", "Left dog", "left dog", (1,), "7"),
        ("7_71", "the dog", "the dog", (1,), "7"),
        ("9_90", "Thing 9", "thing 9", (0,), "9"),
    ]
    assert [e.split for e in two.expressions] == ["val"] and not result.problems


def test_image_paths_come_from_instances_json(tmp_path: Path) -> None:
    """The `file_name` of a ref is not an image file."""
    result = read(
        tmp_path, [ref(1, 1, file_name="COCO_train2014_000000000099_1.jpg")], images=[image(1, file_name="v/7.png")]
    )
    assert result.records[0].image_path == "v/7.png"


def test_grefcoco(tmp_path: Path) -> None:
    """`ann_id` is a list of ids or an int; -1 means no target."""
    refs = [ref(1, [1, 3]), ref(2, [-1]), ref(3, 2), ref(4, -1), ref(6, [3, 3, 1])]
    result = read(tmp_path, refs, name="grefs(unc).json")
    referents = [e.referents for e in result.records[0].expressions]
    assert referents == [(0, 2), (), (1,), (), (2, 0)] and not result.problems


def test_refs_without_sentences_are_skipped_and_counted(tmp_path: Path) -> None:
    """gRefCOCO's released file has such refs. No expression is lost, whatever else they contain."""
    empty = [ref(i, [1, 2], sentences=[], split="val") for i in range(10, 17)]
    result = read(tmp_path, [ref(1, [1]), *empty, ref(2, 77, sentences=[]), ref(3, [-1])], name="grefs(unc).json")
    assert [e.object_id for e in result.records[0].expressions] == ["1", "3"]
    (notice,) = result.problems
    assert notice.is_notice and not notice.split and notice.place == str(tmp_path / "grefs(unc).json")
    assert notice.message == (
        "8 refs without sentences are skipped (val 7, train 1): ref_id 10, 11, 12, 13, 14, .... No expression is lost."
    )


def test_no_target_flag(tmp_path: Path) -> None:
    """gRefCOCO has this flag and ann_id. If they contradict each other, ann_id decides."""
    refs = [
        ref(1, [-1], no_target=True),
        ref(2, [1], no_target=False),
        ref(3, None, no_target=1),
        ref(4, 2, no_target=True),
        ref(5, -1, no_target=0),
    ]
    result = read(tmp_path, refs, name="grefs(unc).json")
    assert [e.referents for e in result.records[0].expressions] == [(), (0,), (), (1,), ()]
    assert [(p.split, p.message) for p in result.problems] == [
        ("", "no_target is True, but ann_id, which decides, is 2"),
        ("", "no_target is 0, but ann_id, which decides, is -1"),
    ]


def test_crowds_are_marked(tmp_path: Path) -> None:
    annotations = [annotation(1, iscrowd=1), annotation(2), annotation(3, iscrowd=None)]
    del annotations[1]["iscrowd"]
    result = read(tmp_path, [ref(1, [1, 2, 3])], annotations=[*annotations, annotation(5, iscrowd="yes")])
    assert [instance.is_crowd for instance in result.records[0].instances] == [True, False, False]
    assert [p.message for p in result.problems] == ["iscrowd is 'yes': it must be true, false, 1 or 0"]


def test_ref_zom(tmp_path: Path) -> None:
    """`source: 'zero'` means no target, whatever ann_id is."""
    refs = [
        ref(1, 1, source="one"),
        ref(2, [1, 2], source="many"),
        ref(3, [3], source="zero"),
        ref(4, [], source="zero"),
    ]
    result = read(tmp_path, refs, name="refs(final).p")
    assert [(e.referents, e.tags) for e in result.records[0].expressions] == [
        ((0,), {"source": "one"}),
        ((0, 1), {"source": "many"}),
        ((), {"source": "zero"}),
        ((), {"source": "zero"}),
    ]


def test_r_refcoco(tmp_path: Path) -> None:
    """Negatives are sentences with `exist: False`. Sentence ids may repeat."""
    sentences = [
        {"sent_id": 5, "raw": "dog", "sent": "dog", "exist": True},
        {"sent_id": 5, "raw": "cat", "sent": "cat", "exist": False},
        {"sent": "no id", "exist": False},
    ]
    result = read(tmp_path, [ref(1, 1, *sentences)])
    expressions = result.records[0].expressions
    assert [(e.text, e.referents, e.tags["exist"]) for e in expressions] == [
        ("dog", (0,), True),
        ("cat", (), False),
        ("no id", (), False),
    ]
    assert len({e.expression_id for e in expressions}) == 3 and {e.object_id for e in expressions} == {"1"}
    only_negatives = read(tmp_path, [ref(1, None, {"raw": "cat", "exist": False})])
    assert only_negatives.records[0].expressions[0].referents == ()


@pytest.mark.parametrize("name", ["refs(unc).p", "refs(unc).json"])
@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1), (0.0, 1.0), (np.int64(0), np.float32(1))])
def test_exist_of_any_numeric_type(tmp_path: Path, name: str, no: Any, yes: Any) -> None:
    """The official code compares the value with 0, so 0 and False are the same."""
    if name.endswith("json"):
        no, yes = (value.item() if isinstance(value, np.generic) else value for value in (no, yes))
    sentences = [{"sent_id": 1, "raw": "dog", "exist": yes}, {"sent_id": 2, "raw": "cat", "exist": no}]
    refs = [ref(1, 1, *sentences), ref(2, None, {"sent_id": 3, "raw": "cow", "exist": no})]
    result = read(tmp_path, refs, name=name)
    expressions = result.records[0].expressions
    assert [(e.referents, e.tags["exist"]) for e in expressions] == [((0,), True), ((), False), ((), False)]
    assert not result.problems and all(type(e.tags["exist"]) is bool for e in expressions)


def test_shared_annotations_and_repeated_refs(tmp_path: Path) -> None:
    result = read(tmp_path, [ref(1, 1, "a"), ref(2, 1, "b"), ref(1, 1, "a"), ref(1, 2, "other")])
    assert [(e.expression_id, e.text) for e in result.records[0].expressions] == [
        ("1_10", "a"),
        ("2_20", "b"),
        ("1_10_2", "other"),
    ]
    assert [(p.message, p.split) for p in result.problems] == [("sent_id 10 is repeated; used once", "")]


def test_raw_and_sent_replace_each_other(tmp_path: Path) -> None:
    result = read(
        tmp_path, [ref(1, 1, {"sent_id": 1, "sent": "only sent"}, {"sent_id": 2, "raw": "Only Raw", "sent": " "})]
    )
    assert [(e.text, e.sent) for e in result.records[0].expressions] == [("only sent",) * 2, ("Only Raw",) * 2]


def test_masks_of_every_form(tmp_path: Path) -> None:
    """Read polygons (one of 4 numbers, which pycocotools takes for a box), both kinds of RLE, and lists of RLEs."""
    mask = np.zeros(SIZE, np.uint8)
    mask[1:3, 2:4] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": list(SIZE), "counts": rle["counts"].decode()}
    # Columns of 8: two empty, then 1 zero 2 ones, 5 + 1 zeros 2 ones, and the rest of 80.
    crowd = {"size": list(SIZE), "counts": [17, 2, 6, 2, 53]}
    forms = [[square(2, 1)], [[0, 0, 1, 1], square(2, 1)], text, [text], crowd]
    annotations = [annotation(i, segmentation=form, iscrowd=int(form is crowd)) for i, form in enumerate(forms)]
    result = read(tmp_path, [ref(1, list(range(5)))], annotations=annotations)
    assert not result.problems
    for instance in result.records[0].instances:
        assert (decode(to_rle(instance.segmentation, SIZE)) == mask.astype(bool)).all(), instance.instance_id


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ref(9, 77), "ref_id 9: ann_id 77 is not in instances.json"),
        (ref(9, 4), "ref_id 9: ann_id 4 belongs to image 2, not 1"),
        (ref(9, 1, image_id=5), "ref_id 9: image_id 5 is not among the images"),
        (ref(9, 1, image_id="1"), "ref_id 9: image_id '1' is not among the images"),
        (ref(9, []), "ann_id is empty"),
        (ref(9, [1, -1]), "or -1 alone"),
        (ref(9, ["1"]), "ids are whole numbers"),
        (ref(9, None), "has no field 'ann_id'"),
        (ref(9, 1, {"raw": "a", "exist": "no"}), r"sentences\[0\]: exist is 'no': it must be true, false, 1 or 0"),
        (ref(9, 1, {"raw": "a", "exist": 2}), r"sentences\[0\]: exist is 2"),
        (ref(9, 1, {"raw": "a", "exist": None}), r"sentences\[0\]: exist is None"),
        (ref(9, None, {"raw": "a", "exist": 0.5}), "exist is 0.5"),
        (ref(9, [1], no_target="x"), "no_target is 'x'"),
        (ref(9, 1, {"sent_id": 1, "raw": "  "}), r"sentences\[0\]: has no text"),
        (ref(9, 1, {"sent_id": 1, "raw": "\ud800"}), r"sentences\[0\]: has no text"),
        (ref(9, 1, {"sent_id": 1, "raw": 3}), r"sentences\[0\]: has no text"),
        ({k: v for k, v in ref(9, 1).items() if k != "split"}, "ref 1: has no field 'split'"),
        (ref(9, 1, image_id=[1]), "field 'image_id' is a list"),
        ("text", "ref 1: is a str, not a dict"),
    ],
)
def test_bad_refs_are_skipped_and_reported(tmp_path: Path, bad: Any, says: str) -> None:
    result = read(tmp_path, [ref(1, 1), bad])
    assert [e.object_id for record in result.records for e in record.expressions] == ["1"]
    (problem,) = result.problems
    assert str(tmp_path / "refs(unc).p") in str(problem)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(str(problem))


def test_bad_annotations_affect_only_their_refs(tmp_path: Path) -> None:
    """Annotation 2 has a broken mask. Its problem has no split, and the problem of ref 2 has the split val."""
    annotations = [
        annotation(1),
        annotation(2, segmentation=[[1, 2]]),
        annotation(3, image_id=9),
        annotation(4, bbox="x"),
    ]
    result = read(tmp_path, [ref(1, 1), ref(2, 2, split="val"), ref(3, 4, split="val")], annotations=annotations)
    assert len(result.records[0].instances) == 1
    assert [(p.split, p.message) for p in result.problems] == [
        ("", "no polygon has 3 points"),
        ("", "image_id 9 is not among the images of instances.json"),
        ("", "bbox is 'x', not [x, y, width, height]"),
        ("val", "its annotation 2 cannot be used: no polygon has 3 points"),
        ("val", "its annotation 4 cannot be used: bbox is 'x', not [x, y, width, height]"),
    ]


def test_bad_images_are_reported(tmp_path: Path) -> None:
    images = [image(1), image(2, height=0), {"id": 3}, "x"]
    result = read(
        tmp_path, [ref(1, 1), ref(2, 4, image_id=2)], images=images, annotations=[annotation(1), annotation(4, 2)]
    )
    assert len(result.records) == 1
    assert "images[1]: height and width are 0 and 10" in str(result.problems[0])
    assert "image_id 2 is not among the images" in str(result.problems[-1])


def test_first_entry_of_a_repeated_id_counts(tmp_path: Path) -> None:
    annotations = [annotation(1), annotation(1, segmentation=[square(5, 5)])]
    result = read(tmp_path, [ref(1, 1)], images=[image(1), image(1, height=99)], annotations=annotations)
    assert [p.message for p in result.problems] == [
        "id 1 is taken by an earlier image",
        "id 1 is taken by an earlier annotation",
    ]
    assert result.records[0].size == SIZE and result.records[0].instances[0].segmentation == [square(1, 1)]


def test_odd_values_do_not_raise(tmp_path: Path) -> None:
    images = [image(1), image(2, height=10**12)]
    result = read(tmp_path, [ref(1, 1)], images=images, categories=[{"id": [1], "name": "x"}, {"id": 1, "name": 5}])
    assert result.records[0].instances[0].category is None and "height and width" in str(result.problems[0])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("refs(unc).p", None, "annotation file not found.*refseg data layout"),
        ("refs(unc).p", b"\x80\x02}.", "holds a dict, not a list of refs"),
        ("instances.json", None, "annotation file not found"),
        ("instances.json", b'{"images": [', "truncated, or not JSON"),
        ("instances.json", b'{"images": []}', "has no list 'annotations'"),
        ("instances.json", b"[]", "has no list 'images'"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    files = write_refer(tmp_path, [ref(1, 1)])
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_refer(refs=files["refs"], instances=files["instances"])
    assert str(tmp_path / name) in str(caught.value)
