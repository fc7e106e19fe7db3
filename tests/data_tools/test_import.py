"""`refseg data import`: files as the tools write them, and what is skipped. COCO has its own tests."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.cli import main
from refseg.data_tools.conversion import Skipped, Wording
from refseg.data_tools.import_data import convert, recognize
from refseg.datasets.masks import decode, to_rle
from refseg.errors import UserError
from refseg.inference.exports import decode_brush, encode_brush

SIZE = (8, 10)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "images" / name)
    return tmp_path / "images"


def read(
    source: Path, content: Any = None, images: Path | None = None, format: str = "auto", **wording: Any
) -> tuple[list[dict], Skipped]:
    """Return the rows of a file, which gets the content, and what was skipped."""
    if content is not None:
        source.write_text(json.dumps(content))
    skipped = Skipped()
    return list(convert(*recognize(source, format), images, source.parent, Wording(**wording), skipped)), skipped


def brief(rows: list[dict]) -> list[tuple[str, int]]:
    """Return the text and the number of targets of each row."""
    return [(row["text"], len(row["targets"] or ())) for row in rows]


# Label Studio ---------------------------------------------------------------------------------------------------------


def region(id: str, kind: str = "polygonlabels", labels: list[str] | None = None, **value: Any) -> dict:
    points = [[10, 25], [50, 25], [50, 75], [10, 75]]
    value = value or {"points": points, "closed": True}
    value |= {kind: ["dog"] if labels is None else labels}
    image = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": id, "type": kind, "from_name": "label", "to_name": "image", **image, "value": value}


def text(id: str, *texts: str, name: str = "caption") -> dict:
    return {"id": id, "type": "textarea", "from_name": name, "to_name": "image", "value": {"text": list(texts)}}


def task(*results: dict, image: str = "/data/upload/1/0a1b2c3d-1.png", **more: Any) -> dict:
    return {"id": 5, "data": {"image": image}, "annotations": [{"result": list(results)}], "predictions": [], **more}


def test_label_studio_phrases(images: Path, tmp_path: Path) -> None:
    """Texts come before choices. The polygon covers 10 to 50 % of 10 columns and 25 to 75 % of 8 rows."""
    choice = {"id": "b", "type": "choices", "from_name": "c", "value": {"choices": ["left"], "points": [[1, 2]]}}
    given = [region("a"), text("a", "the dog", "both "), region("b"), choice, region("c"), text("c", "both")]
    rows, skipped = read(tmp_path / "p.json", [task(*given)], images)
    assert brief(rows) == [("the dog", 1), ("both", 2), ("left", 1)]
    assert rows[0]["targets"] == [[[1.0, 2.0, 5.0, 2.0, 5.0, 6.0, 1.0, 6.0]]]
    assert rows[0]["image"] == "images/1.png" and rows[0]["size"] == list(SIZE)
    assert skipped.numbers == {} and len(skipped.joined) == 1


def test_label_studio_labels_are_phrases_if_there_are_no_others(images: Path, tmp_path: Path) -> None:
    given = [region("a"), region("b"), region("c", labels=["dog", "cat"])]
    rows, skipped = read(
        tmp_path / "p.json", [task(*given)], images, text="the {category}", text_many="{count} {category}s"
    )
    assert brief(rows) == [("3 dogs", 3), ("the cat", 1)]
    rows, skipped = read(tmp_path / "p.json", [task(*given, text("a", "my dog"))], images)
    assert brief(rows) == [("my dog", 1)] and skipped.numbers == {"objects without a phrase": 3}


def test_label_studio_brush(images: Path, tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[2:6, 3] = mask[0, 9] = True
    brush = region("a", "brushlabels", format="rle", rle=encode_brush(mask))
    rows, _ = read(tmp_path / "p.json", [task(brush)], images)
    assert np.array_equal(decode(to_rle(rows[0]["targets"][0], SIZE)), mask)


@pytest.mark.parametrize(
    "name",
    [
        "1.png",
        "/data/local-files/?d=photos%2F1.png",
        "https://example.org/a/1.png?token=x",
        "s3://bucket/deep/1.png",
        "/data/upload/3/0123abcd-1.png",
        "C:\\photos\\1.png",
    ],
)
def test_label_studio_names_of_images(name: str, images: Path, tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "p.json", [task(region("a"), image=name)], images)
    assert rows[0]["image"] == "images/1.png"


def test_label_studio_skips(images: Path, tmp_path: Path) -> None:
    box = {"x": 1, "y": 1, "width": 5, "height": 5}
    tasks = [
        task(
            region("a"),
            region("b", "rectanglelabels", **box),
            text("z", "a photo"),
            text("n", "a cat", name="negative_phrases"),
        ),
        task(region("a"), image="1.png"),
        task(region("a"), image="gone.png"),
        {"id": 1, "data": {"image": "2.png"}, "annotations": [], "predictions": [{"result": [region("a")]}]},
        {"id": 2, "data": {"image": "2.png"}, "annotations": [{"was_cancelled": True, "result": [region("a")]}]},
        {"id": 3},
        task(
            {**region("a"), "image_rotation": 90},
            region("b", points=[[1, 2]]),
            region("c", "brushlabels", rle=[1, 2]),
            image="2.png",
        ),
    ]
    rows, skipped = read(tmp_path / "p.json", tasks, images)
    assert brief(rows) == [("a cat", 0), ("dog", 1)]
    assert skipped.numbers == {
        "regions that are neither brush masks nor polygons": 1,
        "texts and choices of whole images": 1,
        "tasks with the image of an earlier one": 1,
        "images whose file is not there": 1,
        "tasks without annotations (predictions do not count: submit them in Label Studio)": 2,
        "tasks without data": 1,
        "regions with unusable masks": 3,
    }


def test_label_studio_ground_truth_counts(images: Path, tmp_path: Path) -> None:
    entries = [{"result": [region("a", labels=[name])], "ground_truth": name == "b"} for name in "abc"]
    rows, skipped = read(tmp_path / "p.json", [task(annotations=entries)], images)
    assert brief(rows) == [("b", 1)] and skipped.numbers == {"further annotations of a task": 1}


def test_decode_brush_with_literal_values() -> None:
    """A literal run (flag 0) of 4 values, the pixel (0, 0, 0, 255), and then a repeated 0 of 4 values."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    bits += f"000{3:03b}" + "00000000" * 3 + "11111111" + f"100{3:03b}00000000"
    bits += "0" * (-len(bits) % 8)
    values = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_brush(values, (1, 2)).tolist() == [[True, False]]
    for size, broken in [((2, 2), values), ((1, 2), values[:-2]), ((1, 2), values[:3]), ((1, 2), [300])]:
        with pytest.raises(ValueError, match="brush"):
            decode_brush(broken, size)


# labelme --------------------------------------------------------------------------------------------------------------


def shape(label: str = "dog", **more: Any) -> dict:
    points = [[1, 1], [4, 1], [4, 4]]
    return {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}, **more}


def labelme(*shapes: dict, **more: Any) -> dict:
    head = {"version": "5.5.0", "flags": {}, "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return {**head, "imagePath": "images/1.png", "shapes": list(shapes), **more}


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_labels_and_groups(images: Path, tmp_path: Path) -> None:
    """Shapes of one group and label are one object, so there are two dogs and a cat."""
    given = [shape(group_id=1), shape(group_id=1, points=[[5, 5], [8, 5], [8, 7]]), shape(), shape("cat", group_id=1)]
    rows, skipped = read(tmp_path / "1.json", labelme(*given))
    assert brief(rows) == [("dog", 2), ("cat", 1)] and not skipped.numbers
    assert rows[0]["targets"][0] == [[1, 1, 4, 1, 4, 4], [5, 5, 8, 5, 8, 7]]


def test_labelme_descriptions(images: Path, tmp_path: Path) -> None:
    given = [shape(description="left dog\nboth"), shape(description="both"), shape("cat", description="")]
    rows, skipped = read(tmp_path / "1.json", labelme(*given, negative_phrases=["a bird"]))
    assert brief(rows) == [("left dog", 1), ("both", 2), ("a bird", 0)]
    assert skipped.numbers == {"objects without a phrase": 1}
    rows, _ = read(tmp_path / "1.json", labelme(*given), per="instance")
    assert brief(rows) == [("dog", 2), ("cat", 1)]


def test_labelme_mask_and_polygon(images: Path, tmp_path: Path) -> None:
    """The mask of 2 x 3 pixels has its top left corner at x = 6, y = 2. A group joins it with a polygon."""
    drawn = shape(shape_type="mask", points=[[6, 2], [8, 3]], mask=png(np.ones((2, 3))), group_id=3)
    square = shape(points=[[0, 0], [2, 0], [2, 2], [0, 2]], group_id=3)
    rows, skipped = read(tmp_path / "1.json", labelme(drawn, square))
    expected = np.zeros(SIZE, bool)
    expected[2:4, 6:9] = expected[:2, :2] = True
    assert np.array_equal(decode(to_rle(rows[0]["targets"][0], SIZE)), expected) and not skipped.numbers


def test_labelme_claims_of_huge_images(images: Path, tmp_path: Path) -> None:
    drawn = shape(shape_type="mask", points=[[6, 2], [8, 3]], mask=png(np.ones((2, 3))))
    rows, skipped = read(tmp_path / "1.json", labelme(drawn, imageHeight=100_000, imageWidth=100_000))
    assert not rows and "too large for a mask" in skipped.first["objects with unusable masks"]


def test_labelme_folder(images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for name in ("1", "2"):
        content = labelme(shape(), imagePath=f"..\\images\\{name}.png", imageHeight=None)
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "labels" / "x.json").write_text("{")
    (tmp_path / "labels" / "y.json").write_text("{}")
    rows, skipped = read(tmp_path / "labels")
    assert [row["image"] for row in rows] == ["images/1.png", "images/2.png"] and rows[0]["size"] == list(SIZE)
    assert skipped.numbers == {"files that cannot be read": 1, "JSON files without shapes": 1}


def test_labelme_skips(images: Path, tmp_path: Path) -> None:
    given = [
        shape(),
        shape(shape_type="rectangle"),
        shape(""),
        shape("__ignore__"),
        shape(points=[[1, 2], [3, 4]]),
        shape(shape_type="mask", points=[[6, 2], [8, 3]], mask=png(np.ones((20, 30)))),
        shape(shape_type="mask", points=[[6, 2], [8, 3]], mask="no"),
        shape(points=[[1, "a"]]),
    ]
    rows, skipped = read(tmp_path / "1.json", labelme(*given))
    assert brief(rows) == [("dog", 1)]
    assert skipped.numbers == {
        "shapes that are neither polygons nor masks": 1,
        "shapes without a label": 1,
        "shapes labeled __ignore__": 1,
        "objects with unusable masks": 4,
    }


# YOLO -----------------------------------------------------------------------------------------------------------------

LINE = "0 0.1 0.25 0.5 0.25 0.5 0.75"


def yolo(folder: Path, lines: list[str], names: str = "['dog', 'cat']", root: str = "") -> Path:
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / split / "images" / f"{split}.png")
    (folder / "train" / "labels" / "train.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"train: {root}train/images\nval: {root}valid/images\nnc: 2\nnames: {names}\n")
    return folder


@pytest.mark.parametrize(("names", "root"), [("['dog', 'cat']", "../"), ("{0: dog, 1: cat}", "")])
def test_yolo_layouts(names: str, root: str, tmp_path: Path) -> None:
    """Two dogs are one row. The image of val has no labels, so both classes are absent."""
    folder = yolo(tmp_path / "y", [LINE, LINE.replace("0.1", "0.2"), ""], names, root)
    rows, skipped = read(folder, no_target=2)
    assert brief(rows) == [("dog", 2), ("cat", 0), ("dog", 0), ("cat", 0)] and not skipped.numbers
    assert [row["split"] for row in rows] == ["train", "train", "val", "val"]
    assert rows[0]["targets"][0] == [[1.0, 2.0, 5.0, 2.0, 5.0, 6.0]]


def test_yolo_skips(tmp_path: Path) -> None:
    lines = [
        LINE,
        "0 0.5 0.5 0.2 0.2",
        "7 0.1 0.1 0.2 0.1 0.2 0.2",
        "x",
        "0 1 2 3 4 5 6",
        "0 0.1 0.1 0.2",
        "0 nan 0 0 0 1 1",
    ]
    rows, skipped = read(yolo(tmp_path / "y", lines))
    assert brief(rows) == [("dog", 1)]
    assert skipped.numbers == {
        "boxes": 1,
        "lines without a known class and numbers": 2,
        "polygons whose coordinates are not between 0 and 1": 2,
        "lines without the corners of a polygon": 1,
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("names: [a\n", "not YAML"),
        ("train: images\n", "has no `names`"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("- 1", "has no `names`"),
    ],
)
def test_yolo_errors(content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data.yaml").write_text(content)
    assert main(["data", "import", str(tmp_path), "--out", str(tmp_path / "o.jsonl")]) == 1
    assert says in capsys.readouterr().err


# SA-Co ----------------------------------------------------------------------------------------------------------------


def test_sa_co(images: Path, tmp_path: Path) -> None:
    """A phrase without annotations is a negative. One that is not exhaustive, or has an unusable mask, is no row."""
    rle = {"size": list(SIZE), "counts": [5, 3, 72]}
    head = {"file_name": "1.png", "height": SIZE[0], "width": SIZE[1], "is_instance_exhaustive": 1}
    pairs = [{**head, "id": n, "text_input": name} for n, name in enumerate(["dog", "cat", "the dog", "bird", "crowd"])]
    pairs[3]["is_instance_exhaustive"] = 0
    pairs.append({**head, "id": 5, "text_input": "broken"})
    annotations = [{"id": n, "image_id": n, "segmentation": rle, "iscrowd": 0} for n in (0, 2, 3, 5)]
    annotations[3]["segmentation"] = {"size": [1, 1], "counts": [1]}
    annotations.append({"id": 9, "image_id": 4, "segmentation": rle, "iscrowd": 1})
    rows, skipped = read(tmp_path / "s.json", {"images": pairs, "annotations": annotations}, images)
    assert brief(rows) == [("dog", 1), ("cat", 0), ("the dog", 1)]
    assert rows[0]["instance_ids"] == rows[2]["instance_ids"]
    assert skipped.numbers == {
        "entries that were not annotated exhaustively": 1,
        "phrases with crowd regions": 1,
        "entries that cannot be used": 1,
    }


# All formats ----------------------------------------------------------------------------------------------------------


def test_cvat_folder(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """CVAT's archive has `annotations/instances_default.json` and `images`. Attributes hold phrases, one per line."""
    (tmp_path / "annotations").mkdir()
    given = {
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": list(SIZE), "counts": [5, 3, 72]},
                "iscrowd": 1,
                "attributes": {"occluded": False, "phrases": "the dog\nleft dog"},
            }
        ],
    }
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(given))
    out = tmp_path / "own.jsonl"
    assert main(["data", "import", str(tmp_path), "--out", str(out)]) == 0
    assert "instances_default.json: COCO (also from CVAT)" in capsys.readouterr().out
    assert brief([json.loads(line) for line in out.read_text().splitlines()]) == [("the dog", 1), ("left dog", 1)]


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        ("[]", [], "unknown format. Known formats: COCO"),
        ("[1]", [], "unknown format"),
        ("3", [], "unknown format"),
        ("{", [], "truncated, or not JSON"),
        ('{"shapes": []}', [], "no usable annotations (format: labelme)"),
        ('{"shapes": []}', ["--format", "sa-co"], "has no list 'images'"),
        ('{"shapes": []}', ["--text-field", "x"], "--text-field is for COCO"),
        ('[{"data": {"image": "gone.png"}, "annotations": [{"result": []}]}]', [], "with --images"),
        ('[{"data": {}}]', ["--images", "nowhere"], "no such folder of images"),
    ],
)
def test_errors(content: str, more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "f.json").write_text(content)
    assert main(["data", "import", str(tmp_path / "f.json"), *more, "--out", str(tmp_path / "o.jsonl")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_sources_that_cannot_be_read(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for source, says in [("gone.json", "cannot be read"), ("a.zip", "Unpack it"), ("images", "neither a YAML file")]:
        assert main(["data", "import", str(tmp_path / source), "--out", str(tmp_path / "o.jsonl")]) == 1
        assert says in capsys.readouterr().err


ODD = [
    None,
    True,
    -1,
    0,
    2.5,
    float("nan"),
    1e400,
    10**30,
    "",
    "x",
    "\ud800",
    "../../x",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container in a JSON value with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def test_any_odd_value_is_skipped_or_named(images: Path, tmp_path: Path) -> None:
    """Replacing any value by an odd one never raises anything but an error with a message."""
    mask = np.zeros(SIZE, bool)
    mask[2:6, 3:5] = True
    brush = region("b", "brushlabels", format="rle", rle=encode_brush(mask))
    rle = {"size": list(SIZE), "counts": [5, 3, 72]}
    head = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
    drawn = shape(shape_type="mask", points=[[6, 2], [8, 3]], mask=png(np.ones((2, 3))), description="a\nb")
    contents = [
        [task(region("a"), text("a", "the dog"), brush, text("n", "no", name="negative_phrases"))],
        labelme(shape(group_id=1), drawn, negative_phrases=["x"]),
        {"images": [{**head, "text_input": "dog"}], "annotations": [entry]},
        {
            "images": [{**head, "negative_phrases": ["x"]}],
            "annotations": [{**entry, "phrases": ["a"]}],
            "categories": [{"id": 1, "name": "dog"}],
        },
    ]
    formats = ["label-studio", "labelme", "sa-co", "coco"]
    rng = random.Random(0)
    for content, format in zip(contents, formats, strict=True):
        assert read(tmp_path / "f.json", content, None if format == "labelme" else images, format)[0]
        for number in range(len(places(content))):
            for value in rng.sample(ODD, 6):
                changed = copy.deepcopy(content)
                container, key = places(changed)[number]
                container[key] = value
                try:
                    read(tmp_path / "f.json", changed, None if format == "labelme" else images, format, no_target=1)
                except UserError as error:
                    assert str(error)
