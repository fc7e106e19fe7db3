"""The launchers with gloo: two processes train, and one, two and three processes give the same metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY


def launch(script: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY / "projects")}
    command = ["bash", str(REPOSITORY / "tools" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    work_dir = tmp_path_factory.mktemp("dist")
    return work_dir, launch("dist_train.sh", tiny_config, 2, "--work-dir", work_dir)


def test_two_processes_train(trained: tuple[Path, str]) -> None:
    """24 images in batches of 4 on 2 processes make 3 steps per epoch."""
    work_dir, log = trained
    assert "batch  4 per process x 2 x 1 accumulation = 8 images (the learning rate belongs to 8)" in log
    rows = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (work_dir / "epoch_2.pth").is_file()


@pytest.mark.slow
def test_one_two_and_three_processes_agree(tiny_config: Path, tmp_path: Path) -> None:
    """7 test images: neither 2 nor 3 divides them. With random weights, masks have about half of the
    pixels. A `load_from` with other weights changes nothing."""
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
    scores = []
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.json"
        arguments = [tiny_config, tmp_path / "random.pth", processes, "--work-dir", tmp_path, "--out", out]
        arguments += ["--predictions", tmp_path / f"{processes}.jsonl"]
        arguments += ["--cfg-options", f"load_from={tmp_path / 'other.pth'}"] if processes > 1 else []
        launch("dist_test.sh", *arguments)
        scores.append(json.loads(out.read_text())["metrics"])
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
    assert not list(tmp_path.glob("*.part")), "the processes' parts are put together and removed"
    data = load_config(str(tiny_config)).test_dataloader.dataset.annotations.file
    command = ["score", str(tmp_path / "2.jsonl"), "--data", f"{data}:test", "--json", str(tmp_path / "s.json")]
    assert main([*command, "--calibration"]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert {f"refseg/{name}": value for name, value in result["metrics"].items()} == pytest.approx(scores[0])
    assert result["predictions"]["header"]["checkpoint"]["sha256"] and result["no_target"]["calibration"]["AUROC"]


def test_wrong_use_prints_the_usage() -> None:
    for script, arguments in (
        ("dist_train.sh", ["c"]),
        ("dist_test.sh", ["c", "k"]),
        ("slurm_train.sh", []),
        ("slurm_test.sh", []),
    ):
        done = subprocess.run(["bash", str(REPOSITORY / "tools" / script), *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and "Usage: " in done.stderr
    done = subprocess.run(["bash", str(REPOSITORY / "tools/dist_train.sh"), "c", "two"], capture_output=True, text=True)
    assert done.returncode == 2 and "positive number, not 'two'" in done.stderr


def test_slurm_passes_the_launcher(tmp_path: Path) -> None:
    """A fake srun prints the command that it would start."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "4", "SRUN_ARGS": "--qos=x"}
    for script, verb in (("slurm_train.sh", "train"), ("slurm_test.sh", "test")):
        command = ["bash", str(REPOSITORY / "tools" / script), "part", "job", "cfg.py", "last", "--extra"]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4" in out and "--qos=x" in out
        assert f"tools/{verb}.py cfg.py" in out and out.strip().endswith("last --extra --launcher slurm")
