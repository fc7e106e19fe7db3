"""Training end to end on a tiny config: resuming from any checkpoint gives the losses of the run that went on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from refseg.apis import RunOptions, build_runner, load_config, train

CONFIG = "baseline_tiny_refshapes"


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by step, later runs of the same directory overriding earlier ones."""
    found = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "loss" in row:
                found[row["step"]] = row["loss"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_options: dict) -> Path:
    """A run of 2 epochs of 6 steps that is never interrupted, with a checkpoint after every 4th step."""
    work_dir = tmp_path_factory.mktemp("whole")
    train(CONFIG, RunOptions(work_dir=str(work_dir), cfg_options=every_four_steps(tiny_options)))
    return work_dir


def every_four_steps(tiny_options: dict) -> dict:
    dropout = {"model.text_encoder.config.hidden_dropout_prob": 0.3}  # so that randomness within a step counts
    checkpoint = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 4}
    return tiny_options | dropout | checkpoint | {"default_hooks.checkpoint.max_keep_ckpts": -1}


@pytest.mark.parametrize("step", [4, 8])
def test_resuming_in_the_middle_of_an_epoch_gives_the_same_losses(
    whole: Path, tmp_path: Path, tiny_options: dict, step: int
) -> None:
    options = RunOptions(
        work_dir=str(tmp_path), cfg_options=every_four_steps(tiny_options), resume=str(whole / f"iter_{step}.pth")
    )
    train(CONFIG, options)
    expected, got = losses(whole), losses(tmp_path)
    assert sorted(expected) == list(range(1, 13)) and sorted(got) == list(range(step + 1, 13))
    for number in got:
        assert got[number] == pytest.approx(expected[number], rel=1e-5), f"step {number}"


def test_a_finished_run_resumes_to_its_end(whole: Path, tiny_options: dict) -> None:
    before = losses(whole)
    runner = train(CONFIG, RunOptions(work_dir=str(whole), cfg_options=every_four_steps(tiny_options), resume=True))
    assert runner.iter == 12 and losses(whole) == before


def test_max_iters_ends_in_the_middle_of_an_epoch(tmp_path: Path, tiny_options: dict) -> None:
    options = tiny_options | {"train_cfg.max_epochs": None, "train_cfg.max_iters": 8, "train_cfg.val_interval_iters": 4}
    runner = train(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=options))
    assert runner.iter == 8 and runner.max_iters == 8
    validated = [
        json.loads(line)["step"]
        for file in tmp_path.glob("*/vis_data/scalars.json")
        for line in file.read_text().splitlines()
        if "gIoU" in line
    ]
    assert len(validated) == 3, "after steps 4, 6 (the epoch) and 8 (the end)"


def test_either_epochs_or_iterations(tmp_path: Path, tiny_options: dict) -> None:
    for changes in ({"train_cfg.max_iters": 3}, {"train_cfg.max_epochs": None}):
        cfg = load_config(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=tiny_options | changes))
        with pytest.raises(ValueError, match="either max_epochs or max_iters"):
            build_runner(cfg).train()


def test_checkpoints_load_with_weights_only_and_say_their_data(whole: Path) -> None:
    content = torch.load(whole / "iter_12.pth", weights_only=True)
    assert content["meta"]["iter"] == 12
    assert content["meta"]["dataset_meta"]["expressions_per_image"] == 6


def test_a_config_inside_a_checkpoint_is_not_run(whole: Path, tmp_path: Path, tiny_options: dict) -> None:
    content = torch.load(whole / "iter_12.pth", weights_only=True)
    content["meta"]["config"] = "raise SystemExit('code was run')"
    torch.save(content, tmp_path / "iter_12.pth")
    runner = train(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=every_four_steps(tiny_options), resume=True))
    assert runner.iter == 12
