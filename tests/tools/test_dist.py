"""Launchers with gloo. One, two, and three processes give the same metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY
from distributed import run_distributed


def launch(script: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY / "projects")}
    command = ["bash", str(REPOSITORY / "tools" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_train(tiny_config: Path, tmp_path: Path) -> None:
    """24 images in batches of 4 on 2 processes make 3 steps per epoch."""
    log = launch("dist_train.sh", tiny_config, 2, "--work-dir", tmp_path)
    assert "batch  4 per process x 2 x 1 accumulation = 8 images (the learning rate belongs to 8)" in log
    rows = [json.loads(line) for line in next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "epoch_2.pth").is_file()


def evaluate(folder: str, config: str, checkpoint: str, processes: int, cfg_options: dict | None = None) -> None:
    """Test a checkpoint in one of `processes` processes, with metrics and predictions in files named after them."""
    from refseg.engine.run import RunOptions
    from refseg.engine.run import test as run_test

    launcher = "pytorch" if processes > 1 else "none"
    options = RunOptions(work_dir=folder, cfg_options=cfg_options or {}, launcher=launcher)
    out, predictions = f"{folder}/{processes}.json", f"{folder}/{processes}.jsonl"
    run_test(config, checkpoint, options, out=out, predictions=predictions)


def evaluate_on_a_rank(rank: int, world_size: int, folder: str, config: str, checkpoint: str, other: str) -> None:
    evaluate(folder, config, checkpoint, world_size, {"load_from": other})


@pytest.mark.slow
def test_one_two_and_three_processes_agree(tiny_config: Path, tmp_path: Path) -> None:
    """Neither 2 nor 3 divides the 7 test images. With random weights, masks cover about half of the pixels. A
    `load_from` with other weights changes nothing.

    Two processes are started by the script, the others here, which takes less time.
    """
    from refseg.cli import main
    from refseg.engine.run import build_model, load_config
    from refseg.evaluation.prediction_file import read_predictions

    torch.manual_seed(0)
    model = build_model(load_config(str(tiny_config)))
    torch.nn.init.normal_(model.query_head[-1].weight)
    torch.nn.init.zeros_(model.query_head[-1].bias)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "random.pth")
    torch.nn.init.normal_(model.query_head[-1].weight)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "other.pth")
    files = (str(tmp_path), str(tiny_config), str(tmp_path / "random.pth"))
    evaluate(*files, processes=1)
    arguments = ["--work-dir", tmp_path, "--out", tmp_path / "2.json", "--predictions", tmp_path / "2.jsonl"]
    arguments += ["--cfg-options", f"load_from={tmp_path / 'other.pth'}"]
    launch("dist_test.sh", tiny_config, tmp_path / "random.pth", 2, *arguments)
    run_distributed(evaluate_on_a_rank, 3, *files, str(tmp_path / "other.pth"))

    scores = [json.loads((tmp_path / f"{n}.json").read_text())["metrics"] for n in (1, 2, 3)]
    assert 1 < scores[0]["refseg/cIoU"] < 99
    assert scores[0] == scores[1] == scores[2]
    answers = [{row.expression_id: row for row in read_predictions(tmp_path / f"{n}.jsonl")} for n in (1, 2, 3)]
    assert len(answers[0]) == 42
    for others in answers[1:]:  # probabilities differ in the last digits: batches are of other images
        assert {name: row.source for name, row in others.items()} == {
            name: row.source for name, row in answers[0].items()
        }
        probs = [{name: row.no_target_prob for name, row in one.items()} for one in (others, answers[0])]
        assert probs[0] == pytest.approx(probs[1], abs=1e-5)
    assert not list(tmp_path.glob("*.part")), "the parts of the processes are merged and removed"
    data = load_config(str(tiny_config)).test_dataloader.dataset.annotations.file
    command = ["score", str(tmp_path / "2.jsonl"), "--data", f"{data}:test", "--json", str(tmp_path / "s.json")]
    assert main([*command, "--calibration"]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert {f"refseg/{name}": value for name, value in result["metrics"].items()} == pytest.approx(scores[0])
    assert result["predictions"]["header"]["checkpoint"]["sha256"] and result["no_target"]["calibration"]["AUROC"]


@pytest.mark.slow
def test_two_processes_predict(refshapes_images: list[str], tmp_path: Path) -> None:
    log = launch(
        "dist_predict.sh", "refshapes", 2, "--image", *refshapes_images[:3], "--text", "all stars", "--out", tmp_path
    )
    assert "process 0 of 2: 2 images" in log and "process 1 of 2: 1 image" in log and "answers: " in log
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()[1:]]
    assert [row["image"] for row in rows] == refshapes_images[:3]


def test_wrong_arguments_print_the_usage() -> None:
    for script, arguments in (
        ("dist_train.sh", ["c"]),
        ("dist_test.sh", ["c", "k"]),
        ("dist_predict.sh", ["m"]),
        ("dist_finetune.sh", ["d"]),
        ("slurm_train.sh", []),
        ("slurm_test.sh", []),
        ("slurm_predict.sh", []),
    ):
        done = subprocess.run(["bash", str(REPOSITORY / "tools" / script), *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and "Usage: " in done.stderr
    done = subprocess.run(["bash", str(REPOSITORY / "tools/dist_train.sh"), "c", "two"], capture_output=True, text=True)
    assert done.returncode == 2 and "positive number, not 'two'" in done.stderr


def test_slurm_scripts_start_srun(tmp_path: Path) -> None:
    """A fake srun prints the command that it would start."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "4", "SRUN_ARGS": "--qos=x"}
    for script, verb in (("slurm_train.sh", "train"), ("slurm_test.sh", "test"), ("slurm_predict.sh", "predict")):
        command = ["bash", str(REPOSITORY / "tools" / script), "part", "job", "cfg.py", "last", "--extra"]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4" in out and "--qos=x" in out
        assert f"tools/{verb}.py cfg.py" in out and out.strip().endswith("last --extra --launcher slurm")
