"""`refseg data import` of COCO files: rows, and masks that stay the same through the JSONL reader."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refer_files import square
from refseg.cli import main
from refseg.data_tools import import_data
from refseg.data_tools.conversion import Skipped, Wording
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers import read_jsonl
from refseg.errors import UsageError
from refseg.terminal import open_output

SIZE = (8, 10)
CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 7, "name": "kite"}]


def annotation(id: int, category: int = 1, image: int = 1, **more: Any) -> dict:
    entry = {"id": id, "image_id": image, "category_id": category, "segmentation": [square(id % 5, 1.0)], "iscrowd": 0}
    return {**entry, **more}


def write(folder: Path, annotations: list, images: list | None = None, categories: list = CATEGORIES) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / "images" / "1.jpg")
    images = [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}] if images is None else images
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def convert(file: Path, images: Path, base: Path, wording: Wording, skipped: Skipped) -> list[dict]:
    return list(import_data.convert(*import_data.recognize(file, "coco"), images, base, wording, skipped))


def rows(folder: Path, annotations: list, images: list | None = None, **wording: Any) -> tuple[list[dict], Skipped]:
    skipped = Skipped()
    file = write(folder, annotations, images)
    return list(convert(file, folder / "images", folder / "out", Wording(**wording), skipped)), skipped


def test_row_per_image_and_category(tmp_path: Path) -> None:
    found, skipped = rows(tmp_path, [annotation(1), annotation(2), annotation(3, 2)], split="train")
    assert [(row["text"], row["instance_ids"]) for row in found] == [("dog", ["1", "2"]), ("cat", ["3"])]
    assert found[0] == {
        "expression_id": "1-c1",
        "image": "../images/1.jpg",
        "size": [8, 10],
        "text": "dog",
        "targets": [[square(1, 1.0)], [square(2, 1.0)]],
        "instance_ids": ["1", "2"],
        "split": "train",
    }
    assert not skipped.numbers


def test_texts(tmp_path: Path) -> None:
    found, _ = rows(
        tmp_path,
        [annotation(1), annotation(2), annotation(3, 2)],
        text="the {category}",
        text_many="all {count} {category}s",
    )
    assert [row["text"] for row in found] == ["all 2 dogs", "the cat"]


def test_row_per_instance(tmp_path: Path) -> None:
    given = [annotation(1, caption="left dog"), annotation(2, caption="right dog"), annotation(3, 2, caption="cat")]
    found, skipped = rows(tmp_path, given, per="instance", text_field="caption")
    assert [(row["expression_id"], row["text"], row["instance_ids"]) for row in found] == [
        ("1-1", "left dog", ["1"]),
        ("1-2", "right dog", ["2"]),
        ("1-3", "cat", ["3"]),
    ]
    assert not skipped.lines()


def test_phrase_on_several_annotations_is_one_row(tmp_path: Path) -> None:
    """Such as "both dogs". Case and spaces are ignored. A phrase that one annotation has twice joins nothing."""
    given = [
        annotation(1, caption=["both dogs", "brown dog", "Brown  dog"]),
        annotation(2, caption=["Both dogs", "white dog"]),
        annotation(3, 2, caption=["cat"]),
        annotation(4, 1, image=2, caption=["both dogs"]),
    ]
    images = [{"id": n, "file_name": "1.jpg", "height": 8, "width": 10} for n in (1, 2)]
    found, skipped = rows(tmp_path, given, images, per="instance", text_field="caption")
    assert [(row["text"], row["instance_ids"]) for row in found] == [
        ("both dogs", ["1", "2"]),
        ("brown dog", ["1"]),
        ("white dog", ["2"]),
        ("cat", ["3"]),
        ("both dogs", ["4"]),
    ]
    assert found[0]["targets"] == [[square(1, 1.0)], [square(2, 1.0)]]
    (line,) = skipped.lines()
    assert line.startswith("joined: 1 phrases") and "(first: 'both dogs' of image 1)" in line
    assert len({row["expression_id"] for row in found}) == len(found)


def test_category_names_of_several_instances_are_one_row(tmp_path: Path) -> None:
    found, skipped = rows(tmp_path, [annotation(1), annotation(2), annotation(3, 2)], per="instance")
    assert [(row["text"], row["instance_ids"]) for row in found] == [("dog", ["1", "2"]), ("cat", ["3"])]
    assert skipped.joined == ["'dog' of image 1"]


def test_phrase_with_a_target_is_not_a_negative(tmp_path: Path) -> None:
    """A dog is called "kite", so "kite" is not absent although the image has no annotation of this category."""
    given = [annotation(1, caption="kite")]
    found, skipped = rows(tmp_path, given, per="instance", text_field="caption", no_target=2)
    assert [(row["text"], row["targets"] is None) for row in found] == [("kite", False), ("cat", True)]
    assert skipped.numbers == {"phrases without target that refer to something in their image": 1}


def test_cvat(tmp_path: Path) -> None:
    """CVAT stores attributes in a dict, and masks of its brush are RLEs with iscrowd 1."""
    brush = {"size": list(SIZE), "counts": [5, 3, 72]}
    more = {"iscrowd": 1, "segmentation": brush}
    given = [
        annotation(1, attributes={"occluded": False, "expression": "the dog"}),
        annotation(2, attributes={"occluded": False, "expression": "the other dog"}, **more),
        annotation(3, attributes={"occluded": False, "expression": ""}, **more),
    ]
    found, skipped = rows(tmp_path, given, per="instance", text_field="attributes.expression")
    assert [(row["text"], row["instance_ids"], row.get("tags")) for row in found] == [
        ("the dog", ["1"], None),
        ("the other dog", ["2"], None),
    ]
    assert int(pixels(found[1]["targets"][0]).sum()) == 3
    assert skipped.numbers == {"annotations without text in 'attributes.expression'": 1}
    found, _ = rows(tmp_path, given)
    assert [(row["text"], row["instance_ids"]) for row in found] == [("dog", ["1", "2", "3"])]


def test_crowd_region_with_text_is_a_target(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": [5, 3, 72]}}
    given = [annotation(1, caption="the dog", **crowd), annotation(2, **crowd)]
    found, skipped = rows(tmp_path, given, per="instance", text_field="caption")
    assert [(row["text"], row["instance_ids"]) for row in found] == [("the dog", ["1"])]
    assert skipped.numbers == {"crowd regions": 1}


def test_texts_from_a_field(tmp_path: Path) -> None:
    given = [annotation(1, caption=["brown dog", " the dog "]), annotation(2, caption="white one"), annotation(3)]
    found, skipped = rows(tmp_path, given, per="instance", text_field="caption")
    assert [(row["expression_id"], row["text"]) for row in found] == [
        ("1-1-0", "brown dog"),
        ("1-1-1", "the dog"),
        ("1-2", "white one"),
    ]
    assert skipped.lines() == ["skipped: 1 annotations without text in 'caption' (first: id 3 of image 1)"]


def test_crowds_are_present_but_no_targets(tmp_path: Path) -> None:
    """The crowd of cats is skipped, but "cat" is not absent. The row of the dog beside a crowd of dogs is tagged."""
    crowd = {"size": list(SIZE), "counts": [0, 80]}
    given = [
        annotation(1),
        annotation(2, 1, iscrowd=1, segmentation=crowd),
        annotation(3, 2, iscrowd=1, segmentation=crowd),
    ]
    found, skipped = rows(tmp_path, given, no_target=3)
    assert [(row["text"], row["targets"] is None, row.get("tags")) for row in found] == [
        ("dog", False, {"crowd": True}),
        ("kite", True, None),
    ]
    assert skipped.numbers == {"crowd regions": 2}


def test_seed_of_no_target_rows(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": "1.jpg", "height": 8, "width": 10} for n in range(12)]
    first = [row["text"] for row in rows(tmp_path, [], images, no_target=1)[0]]
    assert first == [row["text"] for row in rows(tmp_path, [], images, no_target=1)[0]]
    assert first != [row["text"] for row in rows(tmp_path, [], images, no_target=1, seed=1)[0]]
    assert len(first) == 12


def test_skipped_entries_are_counted(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "1.jpg", "height": 8, "width": 10},
        {"id": 1, "file_name": "1.jpg", "height": 8, "width": 10},
        {"id": 2, "file_name": "gone.jpg", "height": 8, "width": 10},
        {"id": 3, "file_name": "1.jpg"},
        {"file_name": "1.jpg"},
    ]
    given = [
        annotation(1),
        annotation(1),
        annotation(2, 99),
        annotation(3, segmentation=[[1, 2]]),
        annotation(4, image=2),
        {"id": 5},
    ]
    found, skipped = rows(tmp_path, given, images)
    assert [row["instance_ids"] for row in found] == [["1"]]
    assert skipped.numbers == {
        "annotations without image_id": 1,
        "annotations without an id of their own": 1,
        "annotations of unknown categories": 1,
        "annotations with unusable masks": 1,
        "images with the id of an earlier one": 1,
        "images whose file is not there": 1,
        "images without height and width": 1,
        "images without an id": 1,
        "annotations of skipped images": 1,
    }


def test_categories_without_a_name_or_an_id(tmp_path: Path) -> None:
    names = [None, "", "  ", "half \ud800", 5, "dog"]
    categories: list = [{"id": number, "name": name} for number, name in enumerate(names)]
    categories += [{"id": 6}, {"id": [7], "name": "x"}, {"id": None, "name": "x"}, {"id": True, "name": "x"}, "x"]
    given = [annotation(n, n) for n in range(6)] + [annotation(8, [7]), annotation(9, [7], iscrowd=1)]
    file, skipped = write(tmp_path, given, categories=categories), Skipped()
    found = list(convert(file, tmp_path / "images", tmp_path, Wording(no_target=9), skipped))
    assert [(row["text"], row["instance_ids"]) for row in found] == [("dog", ["5"])]
    assert skipped.numbers == {
        "categories without a name": 6,
        "categories without an id": 4,
        "annotations of unknown categories": 7,
    }


def test_texts_with_invalid_unicode(tmp_path: Path) -> None:
    given = [annotation(1, caption=["half \ud800", " whole "]), annotation(2, caption="half \ud800")]
    found, skipped = rows(tmp_path, given, per="instance", text_field="caption")
    assert [row["text"] for row in found] == ["whole"]
    assert skipped.numbers == {"annotations without text in 'caption'": 1}


class TestLinks:
    """Image paths keep the names of links and lead to the image."""

    def path(self, folder: Path, images: Path, base: Path) -> str:
        file = write(folder, [annotation(1)])
        (row,) = convert(file, images, base, Wording(), Skipped())
        assert (base / row["image"]).samefile(folder / "images" / "1.jpg")
        return row["image"]

    def test_image(self, tmp_path: Path) -> None:
        (tmp_path / "named").mkdir()
        (tmp_path / "named" / "1.jpg").symlink_to(tmp_path / "images" / "1.jpg")
        assert self.path(tmp_path, tmp_path / "named", tmp_path) == "named/1.jpg"

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "train2014").symlink_to(tmp_path / "images")
        assert self.path(tmp_path, tmp_path / "train2014", tmp_path) == "train2014/1.jpg"

    def test_common_root(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        assert self.path(tmp_path, tmp_path / "link" / "images", tmp_path / "link") == "images/1.jpg"

    def test_folder_of_the_rows(self, tmp_path: Path) -> None:
        """The parent of a link is the parent of its target."""
        (tmp_path / "a" / "deep").mkdir(parents=True)
        (tmp_path / "rows").symlink_to(tmp_path / "a" / "deep")
        assert self.path(tmp_path, tmp_path / "images", tmp_path / "rows") == "../../images/1.jpg"


# Masks ----------------------------------------------------------------------------------------------------------------

COORDINATES = st.floats(-2, 12, allow_nan=False, width=32)
POLYGON = st.lists(COORDINATES, min_size=6, max_size=12).filter(lambda polygon: len(polygon) % 2 == 0)
POLYGONS = st.lists(POLYGON, min_size=1, max_size=3)
MASKS = st.lists(st.booleans(), min_size=80, max_size=80).map(lambda bits: np.array(bits, np.uint8).reshape(SIZE))


def compressed(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


# Polygons, both kinds of RLE, and RefCLEF's list of RLEs.
SEGMENTATIONS = st.one_of(
    POLYGONS, MASKS.map(compressed), MASKS.map(uncompressed), MASKS.map(lambda mask: [compressed(mask)])
)


def pixels(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, list) and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]
    return decode(to_rle(segmentation, SIZE))


@settings(deadline=None, max_examples=60)
@given(segmentations=st.lists(SEGMENTATIONS, min_size=1, max_size=3), per=st.sampled_from(["category", "instance"]))
def test_masks_are_unchanged_by_a_round_trip(segmentations: list, per: Any) -> None:
    """Polygons and all kinds of RLE have the same pixels after the JSONL file and its reader."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [annotation(n, segmentation=value) for n, value in enumerate(segmentations)]
        instances = write(folder, given)
        out = folder / "my.jsonl"
        converted = convert(instances, folder / "images", folder, Wording(per=per), Skipped())
        out.write_text("".join(json.dumps(row) + "\n" for row in converted))
        annotations = read_jsonl(file=out)
    assert not annotations.problems
    (record,) = annotations.records
    assert record.size == SIZE and len(record.instances) == len(segmentations)
    for instance in record.instances:
        assert np.array_equal(pixels(instance.segmentation), pixels(segmentations[int(instance.instance_id)]))


# The command ----------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    instances = write(tmp_path, [annotation(1), annotation(2, 2)])
    command = ["data", "from-coco", str(instances), "--images", str(tmp_path / "images"), "--out"]
    out = str(tmp_path / "new" / "my.jsonl")
    assert main([*command, out, "--split", "train", "--no-target", "1"]) == 0
    assert "3 rows (1 without target), 2 targets" in capsys.readouterr().out
    assert main(["data", "check", out]) == 0
    assert "OK" in capsys.readouterr().out
    assert main([*command, out]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, out, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        (None, [], "cannot be read"),
        ("{", [], "truncated, or not JSON"),
        ('{"images": []}', [], "has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', [], "has no usable annotations"),
        ("{}", ["--text", "{colour}"], "only {category} and {count}"),
        ("{}", ["--text", "{category.name}"], "only {category} and {count}"),
        ("{}", ["--text", "{category[name]}"], "only {category} and {count}"),
        ("{}", ["--text", " "], "text ' ' is blank"),
        ("{}", ["--text-many", ""], "text '' is blank"),
        ("{}", ["--per", "category", "--text-field", "caption"], "--text-field needs --per instance"),
        ("{}", ["--no-target", "-1"], "--no-target must be at least 0"),
    ],
)
def test_error_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: str | None, more: list[str], says: str
) -> None:
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    out = tmp_path / "my.jsonl"
    command = ["data", "from-coco", str(tmp_path / "c.json"), "--images", str(tmp_path), "--out", str(out)]
    assert main([*command, *more]) == 1
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert not out.exists() and not list(tmp_path.glob(".my.jsonl*"))


def test_missing_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    instances = write(tmp_path, [annotation(1)])
    assert main(["data", "from-coco", str(instances), "--images", "nowhere", "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "no such folder of images: nowhere" in capsys.readouterr().err


def test_interrupted_run_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), open_output(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(UsageError, match="cannot be written"), open_output(tmp_path / "a" / "b"):
        pass
