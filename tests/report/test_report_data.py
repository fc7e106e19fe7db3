"""`refseg report` on a small work directory and prediction file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.evaluation.prediction_file import Answer, write_predictions
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import open_data
from refseg.instance import Instance
from refseg.report.report import render_report
from refseg.report.report_data import REDUCED, Settings, score_run

SIDE = 400  # larger than a thumbnail
NUM_IMAGES = 4


def rle(x: int) -> dict:
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    pixels[40:140, x : x + 100] = 1
    return coco_mask.encode(pixels)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write four images with expressions for the left box, the right box, both, and none: 16 in all. The last image has
    no file. Every answer is the left box, except that "both" gets both instances on every second image."""
    left, right = ({"size": [SIDE, SIDE], "counts": rle(x)["counts"].decode()} for x in (20, 220))
    both = coco_mask.merge([rle(20), rle(220)])
    lines, rows = [], []
    for i in range(NUM_IMAGES):
        kinds = {
            "left <box>": ([left], [0]),
            "right": ([right], [1]),
            "both": ([left, right], [0, 1]),
            "none": (None, []),
        }
        for text, (targets, ids) in kinds.items():
            name = f"{i}_{text[:4]}"
            shared = {"image": f"{i}.png", "size": [SIDE, SIDE], "split": "val", "tags": {"skill": text[:4]}}
            lines.append(shared | {"expression_id": name, "text": text, "targets": targets, "instance_ids": ids})
            finds_both = text == "both" and i % 2 == 0
            instances = [Instance(rle(x), 0.9, [1.0] * len(text.split())) for x in ((20, 220) if finds_both else (20,))]
            rows.append(Answer(name, both if finds_both else rle(20), 0.9 if text == "none" else 0.1, None, instances))
        if i < NUM_IMAGES - 1:
            Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = {"config": "x.py", "data": {"annotations": {"file": "data.jsonl"}, "split": "val"}}
    write_predictions(tmp_path / "p.jsonl", rows, header=header)
    log = tmp_path / "work" / "20260101_000000"
    (log / "vis_data").mkdir(parents=True)
    scalars = [{"lr": 0.1, "loss": 2.0, "grad_norm": 3.0, "iter": 1, "step": 1}, {"refseg/gIoU": 50.0, "step": 1}]
    (log / "vis_data" / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in scalars))
    (log / "20260101_000000.log").write_text(
        "x\nSystem environment:\n    Python: 3.11 <b>\n    PyTorch compiling details: built with:\n  - GCC 13\n\n"
        "Runtime environment:\n    seed: 7\n-----\nConfig:\n    not: this\n"
    )
    (tmp_path / "work" / "tiny.py").write_text("model = dict(type='<X>')\n")
    (tmp_path / "work" / "best_gIoU.pth").write_bytes(b"")
    return tmp_path


def test_scores_hits_and_examples_of_predictions(files: Path) -> None:
    """ "left" is correct, "right" gets the other object, "both" is correct on two images, "none" is rejected."""
    data = open_data(f"{files / 'data.jsonl'}:val")
    scored = score_run(files / "p.jsonl", data, Settings([get_protocol("refseg")], per_group=3, resamples=50))
    (result,) = scored.results
    assert result["metrics"]["gIoU"] == pytest.approx(100 * (4 + 0 + 2 + 2 * 0.5 + 4) / 16)
    skills = {line["skill"]: line for line in result["by"]["skill"]}
    assert skills["left"]["gIoU"] == 100 and skills["left"]["interval"] == {"of": "gIoU", "ends": [100.0, 100.0]}
    hits = {line["the answer hits"]: line["expressions"] for line in scored.hits["with a target"]}
    assert list(hits.values()) == [6, 2, 0, 4, 0, 0]
    assert scored.instances["instances"] == 14 and scored.instances["matched"] == 4 + 0 + 2 * 2 + 2
    assert scored.summary["split"] == "val" and scored.summary["expressions"] == "16 of 16, of 4 images"
    groups = [case.group for case in scored.cases]
    assert groups.count("worst") == groups.count("best") == 3 and "no-target" in groups
    assert all(max(case.image.shape[:2]) == REDUCED.largest for case in scored.cases)
    assert any("cannot be shown" in note for note in scored.notes)
    several = [case for case in scored.cases if case.group == "several"]
    assert several and {len(case.instances) for case in several} <= {1, 2}


@pytest.mark.parametrize(
    ("left", "right", "note"),
    [
        ([0.0, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.9], ""),
        ([0.9, 0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0], "does not beat chance (the top word is right for 0.0 %"),
        (None, None, ""),
    ],
)
def test_words_are_shown_if_they_beat_chance(
    left: list[float] | None, right: list[float] | None, note: str, tmp_path: Path
) -> None:
    """32 instances in 16 images. "red" names the left one and "blue" the right one, so chance is 1 of 5."""
    lines, rows = [], []
    boxes = [{"size": [SIDE, SIDE], "counts": rle(x)["counts"].decode()} for x in (20, 220)]
    for i in range(16):
        tags = {"words": {"0": [1], "1": [4]}}
        shared = {"image": f"{i}.png", "size": [SIDE, SIDE], "split": "val", "tags": tags}
        text = "a red and a blue"
        lines.append(shared | {"expression_id": f"{i}", "text": text, "targets": boxes, "instance_ids": [0, 1]})
        instances = [Instance(rle(x), 0.9, words) for x, words in ((20, left), (220, right))]
        rows.append(Answer(f"{i}", coco_mask.merge([rle(20), rle(220)]), 0.1, None, instances))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_predictions(tmp_path / "p.jsonl", rows)
    data = open_data(f"{tmp_path / 'data.jsonl'}:val")
    scored = score_run(tmp_path / "p.jsonl", data, Settings([get_protocol("refseg")], per_group=2, resamples=5))
    shown = [one.words for case in scored.cases for one in case.instances]
    assert shown and all((words is not None) == (left is not None and not note) for words in shown)
    assert [note in line for line in scored.notes if "words of instances" in line] == [True] * bool(note)


def test_command_with_predictions(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["report", str(files / "work"), "--predictions", str(files / "p.jsonl"), "--protocol", "refseg,gres"]
    numbers = files / "numbers.json"
    data = ["--data", f"{files / 'data.jsonl'}:val"]
    assert main([*call, *data, "--cases", "2", "--resamples", "20", "--json", str(numbers)]) == 0
    assert "report: " in capsys.readouterr().out
    html = (files / "work" / "report.html").read_text()
    for words in (
        "by protocol gres",
        "left &lt;box&gt;",
        "<svg",
        "Python",
        "seed",
        "type=&#39;&lt;X&gt;",
        "grad_norm",
    ):
        assert words in html, words
    assert "not: this" not in html.split("<pre>")[0] and "<script" not in html and "3.11 &lt;b&gt;" in html
    content = json.loads(numbers.read_text())
    assert [result["protocol"] for result in content["results"]] == ["refseg", "gres"] and content["hits"]


def test_box_protocol(files: Path) -> None:
    """The metric is about boxes, and examples show masks. Predictions without masks have no examples and no hits."""
    data = open_data(f"{files / 'data.jsonl'}:val", drop_no_target=True)
    settings = Settings([get_protocol("rec")], per_group=4, resamples=20, allow_partial=True)
    scored = score_run(files / "p.jsonl", data, settings)
    assert scored.results[0]["metrics"] == {"Acc@0.5": 50.0}
    assert {case.iou for case in scored.cases if case.text == "both"} == {0.5, 1.0}
    rows = [Answer(f"{i}_{name}", None, boxes=[]) for i in range(NUM_IMAGES) for name in ("left", "righ", "both")]
    write_predictions(files / "boxes.jsonl", rows)
    bare = score_run(files / "boxes.jsonl", data, settings)
    assert not bare.cases and not any(bare.hits.values()) and bare.results[0]["metrics"] == {"Acc@0.5": 0.0}
    assert "Cases" not in render_report(bare)


def test_command_without_predictions(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page has curves and config, and the commands that make scores name the existing checkpoint."""
    assert main(["report", str(files / "work"), "--out", str(files / "r.html")]) == 0
    printed = capsys.readouterr().out
    assert f"refseg test {files / 'work' / 'tiny.py'} {files / 'work' / 'best_gIoU.pth'} --predictions" in printed
    html = (files / "r.html").read_text()
    assert "no scores" in html and "refseg test" in html and "Train loss" in html and "Metrics</h2>" not in html


def test_error_messages(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*call: str) -> str:
        assert main(["report", *call]) == 1
        return capsys.readouterr().err

    work, predictions = str(files / "work"), str(files / "p.jsonl")
    assert "no such work directory" in error(str(files / "none"))
    (files / "empty").mkdir()
    assert "nothing to report" in error(str(files / "empty"))
    assert "made with data.jsonl, split val" in error(work, "--predictions", predictions)
    assert "Pass their file with --predictions" in error(work, "--data", "refcoco:val")
    data = ["--data", f"{files / 'data.jsonl'}:val"]
    assert "did you mean skill" in error(work, "--predictions", predictions, *data, "--by", "skil")
    (files / "bad.json").write_text("[1]")
    assert "is not a file of `refseg probe --json`" in error(work, "--probes", str(files / "bad.json"))
    assert "refseg probe" in error(work, "--probes", str(files / "absent.json"))
