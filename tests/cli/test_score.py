"""`refseg score` on files with the golden samples of test_protocols.

The images are 12 x 12. The grids of protocols are multiples of that, so every pixel becomes 40 x 40 or 32 x 32, and
percentages stay the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refer_files import annotation, image, ref, write_refer
from refseg.cli import main
from refseg.evaluation.other_formats import png_name
from refseg.evaluation.prediction_file import Answer, rle_to_json, write_predictions

SIDE = 12
Box = tuple[int, int, int, int]
SAMPLES: dict[str, tuple[Box, Box | None, bool]] = {
    "1": ((0, 0, 5, 4), (1, 0, 5, 4), False),
    "2": ((0, 0, 4, 5), (0, 0, 2, 10), True),
    "3": ((0, 0, 5, 1), None, True),
    "4": ((0, 0, 4, 2), None, False),
    "5": ((2, 2, 5, 5), (2, 2, 5, 5), False),
}


def corners(box: Box) -> list[float]:
    x, y, width, height = map(float, box)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def answer(expression_id: str, sample: str) -> Answer:
    (x, y, width, height), _, rejected = SAMPLES[sample]
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    return Answer(expression_id, coco_mask.encode(pixels), 0.9 if rejected else 0.1)


HEADER = {"config": "x.py", "checkpoint": {"sha256": "c0ffee"}, "trained_on": [{"leak_filter": {"against": []}}]}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write data.jsonl with the samples in split val and sample 5 in test, and p.jsonl with the answers to val."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for split, names in (("val", SAMPLES), ("test", ["5"])):
        for name in names:
            target = SAMPLES[name][1]
            lines.append(
                {
                    "expression_id": name if split == "val" else f"t{name}",
                    "image": f"{name}.jpg",
                    "size": [SIDE, SIDE],
                    "text": "the one with many words" if name == "1" else "a dog",
                    "targets": [[corners(target)]] if target else None,
                    "split": split,
                    "tags": {"skill": "size" if name in "12" else "colour"},
                }
            )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_predictions(tmp_path / "p.jsonl", [answer(name, name) for name in reversed(SAMPLES)], header=HEADER)
    return tmp_path


def score(*arguments: str, data: str = "data.jsonl:val", predictions: str = "p.jsonl") -> dict[str, Any]:
    assert main(["score", predictions, "--data", data, "--json", "out.json", *arguments]) == 0
    return json.loads(Path("out.json").read_text())


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("gres", {"cIoU": 47.1264, "gIoU": 53.3333, "N-acc": 50, "T-acc": 66.6667, "Pr@0.7": 33.3333}),
        ("gsva", {"cIoU": 58.6207, "gIoU": 60, "N-acc": 50}),
        ("refzom", {"mIoU": 66.6667, "oIoU": 64.5570, "Acc": 0}),
        ("deris", {"gIoU": 53.3333, "cIoU": 53.2468, "N-acc": 50, "T-acc": 66.6667}),
        ("refzom-score", {"mIoU": 55.5556, "oIoU": 59.4203, "Acc": 50}),
        ("refseg", {"gIoU": 53.3333, "cIoU": 53.2468, "oIoU": 59.4203, "mIoU": 55.5556, "Pr@0.5": 66.6667}),
    ],
)
def test_golden_numbers(protocol: str, expected: dict[str, float], files: Path) -> None:
    result = score("--protocol", protocol)
    assert result["protocol"] == protocol
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected, abs=5e-5)


def test_golden_numbers_of_r_refcoco(files: Path, capsys: pytest.CaptureFixture) -> None:
    """Objects {1, 3, 4} and {5, 3} of one image, in the REFER layout. The grid has 40 x 40 times the pixels."""

    def sentences(number: int, kinds: str) -> list[dict]:
        return [{"sent_id": f"{number}{k}", "raw": "x", "exist": kind == "+"} for k, kind in enumerate(kinds)]

    boxes = (SAMPLES["1"][1], SAMPLES["5"][1])
    refs = [ref(1, 1, *sentences(1, "+--"), split="test"), ref(2, 2, *sentences(2, "+-"), split="test")]
    write_refer(
        files / "root" / "rrefcoco",
        refs,
        images=[image(1, height=SIDE, width=SIDE)],
        annotations=[annotation(i + 1, segmentation=[corners(box)], bbox=list(box)) for i, box in enumerate(boxes)],
    )
    given = {"1_10": "1", "1_11": "3", "1_12": "4", "2_20": "5", "2_21": "3"}
    write_predictions("p.jsonl", [answer(name, sample) for name, sample in given.items()])
    result = score("--protocol", "rrefcoco-original,rrefcoco", "--data-root", "root", data="rrefcoco:test")
    golden = {"mIoU": 83.3333, "oIoU": 83.6735, "mRR": 75.0, "rIoU": 75.0}
    assert result["metrics"] == pytest.approx(golden, abs=5e-5)
    on_grid = 100 * (16 / (24 + 8 * 40 * 40) + 1) / 2
    assert result["results"][1]["metrics"] == pytest.approx({**golden, "rIoU": on_grid}, abs=5e-5)
    assert result["data"]["set"] == "rrefcoco" and result["data"]["split"] == ["test"]
    assert "leak filter are not known" in capsys.readouterr().out


def test_result_names_data_and_protocol(files: Path, capsys: pytest.CaptureFixture) -> None:
    result = score("--protocol", "gres,refseg")
    out = capsys.readouterr()
    assert "p.jsonl on data.jsonl:val: 5 images, 5 expressions" in out.out and "c0ffee" in out.out
    assert "gIoU" in out.out and "53.33" in out.out and "scoring" in out.err
    assert result["details"]["view"]["grid"] == [480, 480] and result["details"]["no_target"]["threshold"] == 0.5
    assert result["data"]["split"] == ["val"] and result["data"]["sentences"] == "all"
    assert result["data"]["expressions"] == 5 and result["data"]["images"] == 5
    assert result["data"]["sources"][0]["sha256"] == hashlib.sha256(Path("data.jsonl").read_bytes()).hexdigest()
    digest = hashlib.sha256(Path("p.jsonl").read_bytes()).hexdigest()
    assert result["predictions"] == {"file": "p.jsonl", "sha256": digest, "header": HEADER}
    assert result["counts"] == dict(
        expected=5, scored=5, missing=0, duplicate=0, extra=0, mis_sized=0, resized=5, mask_objects=0, absent=0
    )
    assert any("not bit-equal" in note for note in result["notes"]) and "not bit-equal" in out.out
    first, second = result["results"]
    assert first["metrics"] == result["metrics"] and second["protocol"] == "refseg" and second["counts"]["resized"] == 0


def test_breakdowns_and_intervals(files: Path, capsys: pytest.CaptureFixture) -> None:
    result = score("--by", "length,skill", "--ci", "50")
    assert result["bootstrap"] == {"level": 95.0, "resamples": 50, "seed": 0, "of": "images"}
    assert result["intervals"].keys() <= result["metrics"].keys()
    for name, (low, high) in result["intervals"].items():
        assert (-100 if "MCC" in name else 0) <= low <= result["metrics"][name] <= high <= 100
    skills = {line["skill"]: line["expressions"] for line in result["by"]["skill"]}
    assert skills == {"size": 2, "colour": 3} and len(result["by"]["length"]) == 2
    out = capsys.readouterr().out
    assert "by skill" in out and "colour" in out and "[" in out


def test_no_target_options(files: Path) -> None:
    """3 and 4 have fewer than 9 pixels and are rejected. IoU is 2/3, 1/3, 1, 1, 1, and cIoU 51 / (24 + 30 + 25)."""
    result = score("--no-target-rule", "area", "--min-area", "9")
    assert result["protocol"] == "refseg+area<9px" and result["details"]["no_target"]["rule"] == "area"
    assert result["metrics"]["gIoU"] == pytest.approx(80) and result["metrics"]["cIoU"] == pytest.approx(5100 / 79)
    assert score("--no-target-threshold", "0.95")["metrics"]["N-acc"] == 0
    assert score("--no-target-rule", "head")["protocol"] == "refseg+head>0.5"


def test_splits_and_missing_probabilities(files: Path) -> None:
    rows = [Answer(f"t{name}", answer(name, name).source) for name in ("5",)]
    write_predictions("t.jsonl.gz", rows)
    result = score(data="data.jsonl:test", predictions="t.jsonl.gz")
    assert result["metrics"]["gIoU"] == 100 and any("no no_target_prob" in note for note in result["notes"])
    write_predictions("all.jsonl", [*rows, *(answer(name, name) for name in SAMPLES)])
    assert score(data="data.jsonl", predictions="all.jsonl")["data"]["split"] is None
    assert score(data="data.jsonl:val,test", predictions="all.jsonl")["counts"]["expected"] == 6


def test_pngs_and_coco_results(files: Path) -> None:
    (files / "png").mkdir()
    entries = []
    for name in SAMPLES:
        mask = answer(name, name).source
        Image.fromarray(coco_mask.decode(mask)).save(files / "png" / png_name(name))
        entries.append({"expression_id": name, "segmentation": rle_to_json(mask), "score": 0.5})
    (files / "coco.json").write_text(json.dumps(entries))
    expected = score("--protocol", "refzom")["metrics"]
    assert score("--protocol", "refzom", predictions="png")["metrics"] == expected
    assert score("--protocol", "refzom", predictions="coco.json")["metrics"] == expected
    emptied = score("--protocol", "refzom", "--min-score", "0.6", predictions="coco.json")
    assert emptied["metrics"]["oIoU"] == 0 and emptied["metrics"]["Acc"] == 100


def notes(**header: Any) -> list[str]:
    write_predictions("p.jsonl", [answer(name, name) for name in SAMPLES], header=header or None)
    return score("--protocol", "refseg,lavt,rec,rrefcoco-original")["notes"]


def test_notes_on_protocols_that_do_not_fit_the_data(files: Path) -> None:
    """Two samples have no target. No two samples have the same object."""
    report = notes(postprocess={"threshold": 0.35})
    assert any(note.startswith("lavt: 2 expressions without a target") for note in report)
    assert any(note.startswith("rec: 2 expressions with no target") for note in report)
    assert any(note.startswith("rec: 5 predictions have neither boxes nor instances") for note in report)
    assert any(note.startswith("rrefcoco-original: no object has expressions with") for note in report)
    assert any("were made at a threshold of 0.35, which is not the protocol's" in note for note in report)
    assert not any("were made at a threshold" in note for note in notes(postprocess={"threshold": 0.5}))


def test_robust_protocol_on_jsonl(files: Path) -> None:
    """Objects {1, 3, 4} and {5}, without sample 2: mRR is 1/2 and rIoU (16 / (24 + 8) + 1) / 2."""
    lines = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    for line in lines:
        line["image"], line["object_id"] = "1.jpg", "b" if line["expression_id"] in "25" else "a"
    with open("own.jsonl", "w") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines if line["expression_id"] in "1345")
    write_predictions("p.jsonl", [answer(name, name) for name in "1345"])
    result = score("--protocol", "rrefcoco-original", data="own.jsonl:val")
    assert result["metrics"]["mRR"] == 50.0 and result["metrics"]["rIoU"] == pytest.approx(75.0)
    assert not any("no object has" in note for note in result["notes"])


def test_note_on_missing_probabilities(files: Path) -> None:
    rows = [answer(name, name) for name in SAMPLES]
    write_predictions("p.jsonl", [*rows[:4], Answer("5", rows[4].source)])
    assert any("refseg: 1 of 5 expressions have no no_target_prob" in note for note in score()["notes"])


def test_drop_no_target(files: Path, capsys: pytest.CaptureFixture) -> None:
    """IoU 2/3, 0 and 1 remain, as in a run with no_target='drop'."""
    write_predictions("p.jsonl", [answer(name, name) for name in "125"])
    assert main(["score", "p.jsonl", "--data", "data.jsonl:val"]) == 1
    err = capsys.readouterr().err
    assert "2 expressions without a prediction, all of which refer to nothing: 3, 4" in err
    assert "--drop-no-target leaves out those that refer to nothing" in err
    result = score("--drop-no-target")
    assert result["metrics"]["gIoU"] == pytest.approx(500 / 9) and result["data"]["no_target"] == "drop"


@pytest.mark.parametrize("kind", ["coco.json", "p.jsonl", "png"])
def test_absent_is_nothing(kind: str, files: Path, capsys: pytest.CaptureFixture) -> None:
    """There are answers to 1, 4 and 5. 2 (with a target) and 3 (without) count as "nothing here".

    IoU is 2/3, 0, 1, 0, 1, and cIoU (16 + 25) / (24 + 20 + 8 + 25), as by DeRIS's rule for all samples. Without the
    option, missing answers are an error.
    """
    given = {name: answer(name, name).source for name in "145"}
    entries = [{"expression_id": name, "segmentation": rle_to_json(mask), "score": 1} for name, mask in given.items()]
    Path("coco.json").write_text(json.dumps(entries))
    write_predictions("p.jsonl", [Answer(name, mask) for name, mask in given.items()])
    (files / "png").mkdir()
    for name, mask in given.items():
        Image.fromarray(coco_mask.decode(mask)).save(files / "png" / f"{name}.png")
    assert main(["score", kind, "--data", "data.jsonl:val"]) == 1
    err = capsys.readouterr().err
    assert "2 expressions without a prediction: 2, 3" in err and "--drop-no-target" not in err
    assert "--absent-is-nothing counts expressions without a prediction as answered with 'nothing here'" in err
    result = score("--absent-is-nothing", "--protocol", "deris,refseg,grec,refzom", predictions=kind)
    expected = {"gIoU": 53.3333, "cIoU": 53.2468, "N-acc": 50, "T-acc": 66.6667}
    for scored in result["results"][:2]:
        assert {name: scored["metrics"][name] for name in expected} == pytest.approx(expected, abs=5e-5)
    assert result["results"][3]["metrics"]["Acc"] == 50
    assert result["counts"]["absent"] == 2 and result["counts"]["missing"] == 0 and result["counts"]["resized"] == 3
    assert any(note.startswith("2 expressions without a prediction count as") for note in result["notes"])


def test_absent_is_nothing_in_compare_and_report(files: Path) -> None:
    """Pages show absent answers too. Their pictures come from a second pass over the file."""
    write_predictions("a.jsonl", [answer(name, name) for name in "145"])
    option = ["--data", "data.jsonl:val", "--absent-is-nothing"]
    assert main(["compare", "a.jsonl", "p.jsonl", *option, "--resamples", "9", "--html", "c.html"]) == 0
    (files / "run").mkdir()
    arguments = ["report", "run", "--predictions", "a.jsonl", *option, "--json", "r.json", "--resamples", "9"]
    assert main(arguments) == 0
    for kind, lines in json.loads(Path("r.json").read_text())["hits"].items():  # 2 and 3 are one of each kind
        nothing = next(line for line in lines if line["the answer hits"].startswith("nothing"))
        assert nothing["expressions"] == 1, kind


def test_file_of_another_split(files: Path, capsys: pytest.CaptureFixture) -> None:
    write_predictions("p.jsonl", [answer("x", "1")])
    arguments = ["score", "p.jsonl", "--data", "data.jsonl:val", "--absent-is-nothing", "--allow-partial"]
    assert main(arguments) == 1
    assert "of 5 expressions 5 are missing (1, 2, 3, 4, 5)" in capsys.readouterr().err


def test_breakdowns_by_any_tag(files: Path, capsys: pytest.CaptureFixture) -> None:
    """Text stays as it is, and other values become JSON. Expressions without the tag are in no group."""
    lines = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    for line, value in zip(lines, ("old", "old", 3, True, None), strict=False):
        line["tags"] = {} if value is None else {"film": value}
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = score("--by", "tag:film,length")
    table = result["by"]["tag:film"]
    assert [(line["tag:film"], line["expressions"]) for line in table] == [("3", 1), ("old", 2), ("true", 1)]
    # Groups have the same weight in the mean, whatever their size. Lengths have no mean
    mean = result["mean_of_groups"]["tag:film"]["gIoU"]
    assert mean == pytest.approx(sum(line["gIoU"] for line in table) / 3) and mean != result["metrics"]["gIoU"]
    assert result["mean_of_groups"].keys() == {"tag:film"}
    printed = capsys.readouterr().out
    assert "by tag:film" in printed and printed.count("mean of 3 groups") == 1


def test_min_score(files: Path) -> None:
    scores = dict(zip(SAMPLES, (-2.5, 0.1, 0.2, 0.9, 0.3), strict=True))
    entries = [
        {"expression_id": name, "segmentation": rle_to_json(answer(name, name).source), "score": scores[name]}
        for name in SAMPLES
    ]
    Path("coco.json").write_text(json.dumps(entries))
    assert score("--protocol", "lavt", predictions="coco.json")["metrics"]["mIoU"] == pytest.approx(40.0)
    report = score("--protocol", "lavt", "--min-score", "0", predictions="coco.json")
    assert report["metrics"]["mIoU"] == pytest.approx(40 - 200 / 15)  # without sample 1
    assert "1 entries of a score below 0 are in no mask" in report["notes"]


def test_header_of_predictions(files: Path, capsys: pytest.CaptureFixture) -> None:
    """A header of refseg becomes a sentence, and any other one a list of its keys. The JSON has the whole header."""
    header = {
        "config": "x.py",
        "checkpoint": {"file": "runs/a/best.pth", "sha256": "0123456789abcdef"},
        "data": {"annotations": {"format": "jsonl", "file": "data/own.jsonl"}, "split": "val", "hold_out": None},
        "postprocess": {"threshold": 0.5, "min_area": 50},
    }
    notes(**header)
    out = capsys.readouterr().out
    assert "\n  config x.py, checkpoint best.pth (01234567), on data/own.jsonl, split val\n" in out
    assert "min_area" not in out and json.loads(Path("out.json").read_text())["predictions"]["header"] == header
    notes(model="other", checkpoint=3)
    assert "made with: model, checkpoint" in capsys.readouterr().out


def test_prediction_file_as_data(files: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", "p.jsonl", "--data", "p.jsonl:val"]) == 1
    err = capsys.readouterr().err
    assert "is no ground truth: none of its 6 rows can be used, the first: " in err and "unknown field" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ci", "some"], "'some' is not a whole number of at least 1"),
        (["--min-area", "0"], "'0' is not a whole number of at least 1"),
        (["--no-target-threshold", "1.5"], "'1.5' is not a number in [0, 1]"),
        (["--no-target-threshold", "x"], "'x' is not a finite number"),
        (["--min-score", "nan"], "'nan' is not a finite number"),
    ],
)
def test_invalid_values_of_options(arguments: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["score", "p.jsonl", "--data", "data.jsonl", *arguments])
    assert says in capsys.readouterr().err


def test_partial_predictions(files: Path, capsys: pytest.CaptureFixture) -> None:
    write_predictions("p.jsonl", [answer("1", "1"), answer("5", "5"), answer("5", "1"), answer("x", "1")])
    assert main(["score", "p.jsonl", "--data", "data.jsonl:val", "--json", "out.json"]) == 1
    err = capsys.readouterr().err
    assert (
        "3 expressions without a prediction: 2, 3, 4" in err and "1 prediction for no expression of the data: x" in err
    )
    assert not Path("out.json").exists() and "Traceback" not in err
    result = score("--allow-partial")
    assert result["metrics"]["mIoU"] == pytest.approx(250 / 3) and result["counts"]["scored"] == 2
    out = capsys.readouterr().out
    assert "PARTIAL: scores are of 2 of 5 expressions (3 missing, 0 mis-sized)" in out and "1 duplicate" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--protocol", "gress"], "did you mean gres"),
        (["--protocol", "gres,"], "is not a list of names"),
        (["--protocol", "lavt", "--no-target-rule", "area"], "protocol lavt has no rule for 'nothing here'"),
        (["--protocol", "lavt", "--min-area", "9"], "protocol lavt has no rule for 'nothing here'"),
        (["--min-score", "0.5"], "--min-score needs COCO results"),
        (["--by", "length,"], "is not a list of names"),
        (["--by", "tag:colour"], "no expression has a tag:colour; there are: skill"),
        (["--data", ""], "--data is empty"),
        (
            ["--no-target-rule", "area", "--no-target-threshold", "0.3"],
            "--no-target-threshold needs --no-target-rule head",
        ),
        (["--min-area", "9"], "--min-area needs --no-target-rule area"),
        (["--by", "lenght"], "did you mean length"),
        (["--data", "data.jsonl:tset"], "no expression has split 'tset'"),
        (["--data", "none.jsonl"], "no such file"),
        (["--data", "refcocoo:val"], "did you mean refcoco"),
        (["--json", "data.jsonl/out.json"], "cannot be written"),
    ],
)
def test_mistakes(arguments: list[str], says: str, files: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", "p.jsonl", "--data", "data.jsonl:val", *arguments]) == 1
    err = capsys.readouterr().err
    assert "refseg score: error: " in err and says in err and "Traceback" not in err


def test_bad_predictions_and_bad_data(files: Path, capsys: pytest.CaptureFixture) -> None:
    with open("p.jsonl", "a") as file:
        file.write("{}\n")
    assert main(["score", "p.jsonl", "--data", "data.jsonl:val"]) == 1
    assert "p.jsonl, line 7: expression_id must be" in capsys.readouterr().err
    assert main(["score", "none.jsonl", "--data", "data.jsonl:val"]) == 1
    assert "no such file or folder of predictions: none.jsonl" in capsys.readouterr().err
    write_predictions("p.jsonl", (answer(name, name) for name in SAMPLES))
    with open("data.jsonl", "a") as file:
        file.write('{"split": "val"}\n')
    assert main(["score", "p.jsonl", "--data", "data.jsonl:val"]) == 1
    assert "1 annotations of data.jsonl:val cannot be used, the first: " in capsys.readouterr().err
    assert score("--allow-partial")["data"]["unreadable_annotations"] == 1


def test_folder_with_several_data_sets(refshapes_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The generated folder has a JSONL file and the official layouts, and --data names one of them."""

    def perfect(lines: Iterable[str]) -> Iterable[Answer]:
        for row in map(json.loads, lines):
            if row["split"] == "val":
                rles = [
                    coco_mask.merge(coco_mask.frPyObjects(t, *row["size"]))
                    if isinstance(t, list)
                    else {**t, "counts": t["counts"].encode()}
                    for t in row["targets"] or []
                ]
                empty = coco_mask.encode(np.zeros(row["size"], np.uint8, order="F"))
                yield Answer(row["expression_id"], coco_mask.merge(rles) if rles else empty, float(not rles))

    file = refshapes_tiny / "refshapes.jsonl"
    with file.open() as lines:
        write_predictions(tmp_path / "p.jsonl", perfect(lines))
    arguments = ["score", str(tmp_path / "p.jsonl"), "--json", str(tmp_path / "o.json"), "--by", "skill", "--data"]
    assert main([*arguments, f"{file}:val"]) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert set(result["metrics"].values()) == {100.0} and len(result["by"]["skill"]) > 1
    if main([*arguments, f"{refshapes_tiny}:val"]) == 1:
        assert "has several sets of annotations" in capsys.readouterr().err


def test_calibration_and_alignment(tmp_path: Path, refshapes_tiny: Path, capsys: pytest.CaptureFixture) -> None:
    """Predictions are the truth: each instance has its weight on its own words, and the probability is 0 or 1."""
    lines = []
    for line in (refshapes_tiny / "refshapes.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] != "val":
            continue
        words = row["text"].split()
        described = row["tags"]["words"]
        instances = [
            {"mask": mask, "score": 1.0, "words": [float(k in described[str(name)]) for k in range(len(words))]}
            for name, mask in zip(row["instance_ids"], row["targets"] or [], strict=True)
        ]
        merged = row["targets"][0] if row["targets"] else {"size": row["size"], "counts": [96 * 96]}
        lines.append({"expression_id": row["expression_id"], "mask": merged, "instances": instances,
                      "no_target_prob": float(not row["targets"])})  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = f"{refshapes_tiny / 'refshapes.jsonl'}:val"
    out = tmp_path / "s.json"
    command = ["score", str(tmp_path / "p.jsonl"), "--data", data, "--json", str(out), "--calibration", "--alignment"]
    assert main(command) == 0
    result = json.loads(out.read_text())
    assert result["no_target"]["calibration"]["AUROC"] == 1 and result["no_target"]["calibration"]["ECE"] == 0
    assert result["alignment"]["all words"]["pointing"] == 100
    report = capsys.readouterr().out
    assert "AUROC 1.000" in report and "words of instances, all words: " in report
