"""`refseg calibrate` against `refseg score` and `refseg test`, and its mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.evaluation.overlap import union_rle
from refseg.evaluation.prediction_file import Answer, read_predictions, write_predictions
from refseg.inference.inferencer import ReferringInferencer
from refseg.instance import Instance

SIDE, NUM = 12, 20
HEADER = {"postprocess": {"no_target_threshold": 0.5, "instance_threshold": 0.1}, "data": {"split": "val"}}
UNITED = {**HEADER, "merged": "instances"}


def mask_rle(rng: np.random.Generator) -> dict:
    """Return a random rectangle."""
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y = rng.integers(0, SIDE - 3, 2)
    pixels[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = 1
    return coco_mask.encode(pixels)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write data.jsonl with 20 random expressions of split val, a third of them without a target, and one of test.

    p.jsonl has answers with instances, whose union is the mask, and probabilities. united.jsonl says that it is.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines, answers = [], []
    for i in range(NUM):
        x, y = map(float, rng.integers(0, 6, 2))
        target = [[x, y, x + 5, y, x + 5, y + 5, x, y + 5]] if i % 3 else None
        line = {"expression_id": str(i), "image": f"{i}.jpg", "size": [SIDE, SIDE], "text": "a dog", "split": "val"}
        lines.append({**line, "targets": [target] if target else None})
        instances = [Instance(mask_rle(rng), score) for score in np.sort(rng.random(i % 5))[::-1] * 0.9 + 0.1]
        union = union_rle([one.rle for one in instances], (SIDE, SIDE))
        prob = float(np.clip(rng.normal(0.4 if target else 0.6, 0.2), 0, 1))
        answers.append(Answer(str(i), union, prob, raw_instances=instances))
    lines.append({**lines[1], "expression_id": "t", "image": "t.jpg", "split": "testA"})
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_predictions("p.jsonl", answers, header=HEADER)
    write_predictions("united.jsonl", answers, header=UNITED)
    write_predictions("no_prob.jsonl", [replace(one, no_target_prob=None) for one in answers], header=UNITED)
    return tmp_path


def calibrate(*arguments: str, predictions: str = "p.jsonl", data: str = "data.jsonl:val") -> dict[str, Any]:
    assert main(["calibrate", predictions, "--data", data, "--json", "out.json", *arguments]) == 0
    return json.loads(Path("out.json").read_text())


def score(predictions: str, *arguments: str) -> dict[str, float]:
    assert main(["score", predictions, "--data", "data.jsonl:val", "--json", "score.json", *arguments]) == 0
    return json.loads(Path("score.json").read_text())["metrics"]


@pytest.mark.parametrize("protocol", ["refseg", "gres", "deris", "gsva", "gsva-refzom"])
@pytest.mark.parametrize("goal", [[], ["--min-t-acc", "60"], ["--goal", "gIoU", "--min-t-acc", "80"]])
def test_same_numbers_as_score(protocol: str, goal: list[str], files: Path) -> None:
    result = calibrate("--protocol", protocol, *goal)
    assert result["before"]["metrics"] == pytest.approx(score("p.jsonl", "--protocol", protocol))
    threshold = ["--no-target-threshold", repr(result["chosen"]["no_target_threshold"])]
    assert result["after"]["metrics"] == pytest.approx(score("p.jsonl", "--protocol", protocol, *threshold))
    rule = ["--no-target-rule", result["after"]["protocol"]["no_target"]["rule"]]
    assert result["after"]["metrics"] == pytest.approx(score("p.jsonl", "--protocol", protocol, *rule, *threshold))
    assert set(result["chosen"]) == {"no_target_threshold"}
    if goal:
        assert result["after"]["metrics"]["T-acc"] >= result["goal"]["min_t_acc"]


def filtered(predictions: str, threshold: float) -> str:
    """Write the answers that a model with this instance threshold gives."""
    answers = []
    for answer in read_predictions(predictions):
        instances = [one for one in answer.raw_instances if one.score >= threshold]
        union = union_rle([one.rle for one in instances], (SIDE, SIDE))
        answers.append(replace(answer, source=union, raw_instances=instances))
    write_predictions("filtered.jsonl", answers)
    return "filtered.jsonl"


@pytest.mark.parametrize("predictions", ["united.jsonl", "no_prob.jsonl"])
@pytest.mark.parametrize("protocol", ["refseg", "gres"])
def test_unions_of_instances(predictions: str, protocol: str, files: Path) -> None:
    """Every line of the curve is the score of the answers that a model with this threshold gives."""
    result = calibrate("--protocol", protocol, predictions=predictions)
    assert result["before"]["metrics"] == pytest.approx(score(predictions, "--protocol", protocol))
    chosen = result["chosen"]
    rule = ["--no-target-rule", "head-or-empty"]
    rule += ["--no-target-threshold", repr(chosen.get("no_target_threshold", 0.5))]
    best = score(filtered(predictions, chosen["instance_threshold"]), "--protocol", protocol, *rule)
    assert result["after"]["metrics"] == pytest.approx(best)
    curve = result["curves"]["instance_threshold"]
    assert curve[0]["threshold"] == 0.1 and len(curve) > 10
    for line in curve:
        scores = score(filtered(predictions, line["threshold"]), "--protocol", protocol, *rule)
        for metric in ("gIoU", "N-acc", "T-acc"):
            assert line[metric] == pytest.approx(scores[metric]) and line["gIoU"] <= best["gIoU"] + 1e-6


def test_output(files: Path, capsys: pytest.CaptureFixture) -> None:
    result = calibrate("--plot", "curve.png", predictions="united.jsonl")
    with Image.open("curve.png") as picture:
        assert picture.size == (1560, 540)
    out, err = capsys.readouterr()
    assert "refer to nothing" in out and "warning" not in err
    for name, value in result["chosen"].items():
        (line,) = [line for line in out.splitlines() if line.startswith(repr(value)) and "chosen: best gIoU" in line]
        assert name in out
        assert line.split()[1:4] == [
            f"{result['after']['metrics'][metric]:.2f}" for metric in ("N-acc", "T-acc", "gIoU")
        ]
    main(["calibrate", "p.jsonl", "--data", "data.jsonl:val"])
    out = capsys.readouterr().out
    assert "refseg score FILE --data SET:SPLIT --protocol refseg --no-target-threshold" in out


def test_test_split_is_a_warning(files: Path, capsys: pytest.CaptureFixture) -> None:
    answers = [replace(one, expression_id="t") for one in read_predictions("p.jsonl") if one.expression_id == "1"]
    write_predictions("t.jsonl", answers)
    result = calibrate(predictions="t.jsonl", data="data.jsonl:testA")
    out, err = capsys.readouterr()
    assert "warning: the thresholds were chosen on data.jsonl:testA" in err
    assert "N-acc is undefined" in out and result["chosen"]["no_target_threshold"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.jsonl"], "none.jsonl"),
        (["empty.jsonl"], "empty.jsonl is empty. `refseg test MODEL --predictions FILE` writes"),
        (["bad.jsonl"], "bad.jsonl, line 1: no_target_prob must be null or in [0, 1], not 7"),
        (["plain.jsonl"], "plain.jsonl on data.jsonl:val: there is no threshold to choose"),
        (["wrong.jsonl"], "masks are not the union of their instances, though the header says so. The first is"),
        (["logits.jsonl"], "the prediction for 2: the score 7 of an instance is outside 0..1"),
        (["p.jsonl", "--data", "data.jsonl:testA"], "20 predictions for no expression of the data"),
        (["p.jsonl", "--data", "data.jsonl:dev"], "no expression has split 'dev' (available: testA, val)"),
        (["p.jsonl", "--protocol", "lavt"], "lavt has no gIoU. Choose by one of refseg, gres"),
        (["p.jsonl", "--protocol", "gress"], "did you mean gres"),
        (["p.jsonl", "--goal", "N-acc"], "--goal N-acc needs --min-t-acc"),
        (["p.jsonl", "--plot", "curve.svg"], "must end in .png"),
        (["p.jsonl", "--apply", "refshapes"], "ships with refseg and is not changed. Copy its folder"),
        (
            ["p.jsonl", "--apply", "none"],
            "--apply: 'none' is neither a work directory nor a checkpoint nor the name of a model",
        ),
        (["p.jsonl", "--apply", "folder"], "--apply folder must be a work directory or a config. No config in folder"),
        (["p.jsonl", "--apply", "model.pth"], "is a checkpoint. Pass its work directory"),
    ],
)
def test_mistakes(arguments: list[str], says: str, files: Path, capsys: pytest.CaptureFixture) -> None:
    answers = list(read_predictions("p.jsonl"))
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"expression_id": "0", "no_target_prob": 7, "boxes": []}\n')
    Path("folder").mkdir()
    write_predictions("plain.jsonl", [replace(one, no_target_prob=None) for one in answers], header=HEADER)
    write_predictions("wrong.jsonl", [replace(one, source=answers[0].source) for one in answers], header=UNITED)
    answers[2] = replace(answers[2], raw_instances=[Instance(answers[1].source, 7.0)])
    write_predictions("logits.jsonl", answers, header=UNITED)
    data = [] if "--data" in arguments else ["--data", "data.jsonl:val"]
    assert main(["calibrate", *arguments, *data]) == 1
    assert says in capsys.readouterr().err


# --apply --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(work_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a work directory `model`, and write its predictions for RefShapes tiny's test split to p.jsonl."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(work_dir("instalign_tiny_refshapes"), "model")
    assert main(["test", "model", "--predictions", "p.jsonl"]) == 0
    return Path("model")


def test_apply(trained: Path, refshapes_tiny: Path) -> None:
    """`refseg predict` and `refseg test` use the threshold: `test` prints the scores that `calibrate` promised."""
    before = (trained / "instalign_tiny_refshapes.py").read_text()
    data = f"{refshapes_tiny}/refshapes.jsonl:test"
    result = calibrate("--apply", "model", data=data)
    threshold = result["chosen"]["no_target_threshold"]
    assert threshold != 0.5
    assert ReferringInferencer("model", device="cpu").postprocess.no_target_threshold == threshold
    # `refseg test`
    assert main(["test", "model", "--predictions", "again.jsonl", "--out", "test.json"]) == 0
    tested = json.loads(Path("test.json").read_text())
    name = result["after"]["protocol"]["name"]
    assert tested["metrics"] == pytest.approx({f"{name}/{key}": v for key, v in result["after"]["metrics"].items()})
    # The new predictions say so, and nothing is left to choose
    again = calibrate("--apply", "model", predictions="again.jsonl", data=data)
    assert again["before"]["metrics"] == again["after"]["metrics"] == pytest.approx(result["after"]["metrics"])
    # Everything else in the config is as it was
    after = (trained / "instalign_tiny_refshapes.py").read_text()
    for text in (f"postprocess=dict(no_target_threshold={threshold!r}),", f"no_target=dict(threshold={threshold!r}),"):
        assert "".join(text.split()) in "".join(after.split())
        after = "".join(after.split()).replace("".join(text.split()), "", 1)
    assert after == "".join(before.split())


def test_other_weights(trained: Path, refshapes_tiny: Path, capsys: pytest.CaptureFixture) -> None:
    data = ["--data", f"{refshapes_tiny}/refshapes.jsonl:test", "--apply", "model"]
    config = (trained / "instalign_tiny_refshapes.py").read_text()
    write_predictions("unknown.jsonl", read_predictions("p.jsonl"))
    assert main(["calibrate", "unknown.jsonl", *data]) == 1
    assert "unknown.jsonl does not say which weights made it" in capsys.readouterr().err
    with (trained / "best_refseg_gIoU_epoch_1.pth").open("ab") as file:
        file.write(b"more")
    assert main(["calibrate", "p.jsonl", *data]) == 1
    assert "p.jsonl was made by other weights" in capsys.readouterr().err
    assert (trained / "instalign_tiny_refshapes.py").read_text() == config


def test_apply_to_a_config(trained: Path, refshapes_tiny: Path, capsys: pytest.CaptureFixture) -> None:
    """A config without weights gets a new one beside it, and a config that ships gets one in the current folder."""
    from refseg.engine.run import load_config

    data = f"{refshapes_tiny}/refshapes.jsonl:test"
    Path("own").mkdir()
    Path("own/mine.py").write_text(
        "_base_ = 'refseg::instalign_tiny_refshapes.py'\nmodel = dict(postprocess=dict(min_area=9))\n"
    )
    for model, file in (("own/mine.py", "own/mine_calibrated.py"), ("instalign_tiny_refshapes",) * 2):
        file = file if file.endswith(".py") else f"{file}_calibrated.py"
        threshold = calibrate("--apply", model, data=data)["chosen"]["no_target_threshold"]
        assert f"wrote {file}: model.postprocess.no_target_threshold = {threshold!r}" in capsys.readouterr().out
        cfg = load_config(file)
        assert cfg.model.postprocess.no_target_threshold == threshold
        assert cfg.test_evaluator.no_target.threshold == threshold and "no_target" not in cfg.val_evaluator
    assert load_config("own/mine_calibrated.py").model.postprocess.min_area == 9
    # The rule must read a threshold
    Path("own/mine.py").write_text(
        "_base_ = 'refseg::instalign_tiny_refshapes.py'\nmodel = dict(postprocess=dict(no_target='area'))\n"
    )
    assert main(["calibrate", "p.jsonl", "--data", data, "--apply", "own/mine.py"]) == 1
    assert "no_target is 'area', which reads no threshold. Set it to 'head-or-empty'" in capsys.readouterr().err
