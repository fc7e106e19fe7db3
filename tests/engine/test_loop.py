"""Training on a tiny config, resuming in the middle of an epoch, and data-loading workers that die."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset

from refseg.datasets.samplers import EpochSampler, SampleKey
from refseg.engine.loop import ResumableTrainLoop, hold_back_worker_deaths, worker_death
from refseg.engine.run import RunOptions, build_runner, load_config, train
from refseg.errors import ConfigError, TrainingError

CONFIG = "baseline_tiny_refshapes"


def losses(work_dir: Path) -> dict[int, float]:
    """Return the loss of each step. Later runs in the same directory override earlier ones."""
    found = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "loss" in row:
                found[row["step"]] = row["loss"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_options: dict) -> Path:
    """Train 2 epochs of 6 steps without interruption, with a checkpoint after every 4th step."""
    work_dir = tmp_path_factory.mktemp("whole")
    train(CONFIG, RunOptions(work_dir=str(work_dir), cfg_options=every_four_steps(tiny_options)))
    return work_dir


def every_four_steps(tiny_options: dict) -> dict:
    dropout = {"model.text_encoder.config.hidden_dropout_prob": 0.3}  # so that randomness within a step counts
    checkpoint = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 4}
    return tiny_options | dropout | checkpoint | {"default_hooks.checkpoint.max_keep_ckpts": -1}


@pytest.mark.parametrize("step", [4, 8])
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(
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


def test_resuming_a_finished_run_trains_no_step(whole: Path, tiny_options: dict) -> None:
    before = losses(whole)
    runner = train(CONFIG, RunOptions(work_dir=str(whole), cfg_options=every_four_steps(tiny_options), resume=True))
    assert runner.iter == 12 and losses(whole) == before


def test_max_iters_ends_in_the_middle_of_an_epoch(tmp_path: Path, tiny_options: dict) -> None:
    """Also when it was killed in the last validation, which is then repeated."""
    options = tiny_options | {"train_cfg.max_epochs": None, "train_cfg.max_iters": 8, "train_cfg.val_interval_iters": 4}
    options |= {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 8}
    runner = train(CONFIG, RunOptions(work_dir=str(tmp_path / "whole"), cfg_options=options))
    assert runner.iter == 8 and runner.max_iters == 8
    assert len(validations(tmp_path / "whole")) == 3, "after steps 4, 6 (the epoch) and 8 (the end)"

    last = str(tmp_path / "whole" / "iter_8.pth")
    options["train_cfg.val_interval_iters"] = None
    train(CONFIG, RunOptions(work_dir=str(tmp_path / "again"), cfg_options=options, resume=last))
    assert len(validations(tmp_path / "again")) == 1


def validations(work_dir: Path) -> list[str]:
    files = work_dir.glob("*/vis_data/scalars.json")
    return [line for file in files for line in file.read_text().splitlines() if "gIoU" in line]


def test_a_validation_can_end_the_training(tmp_path: Path, tiny_options: dict) -> None:
    """No step follows it, and it is not repeated."""

    class Stop(Hook):
        def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
            runner.train_loop.stop_training = True

    options = tiny_options | {"train_cfg.val_interval_iters": 2}
    runner = build_runner(load_config(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=options)))
    runner.register_hook(Stop())
    runner.train()
    assert runner.iter == 2 and len(validations(tmp_path)) == 1


def test_max_epochs_and_max_iters_exclude_each_other(tmp_path: Path, tiny_options: dict) -> None:
    for changes in ({"train_cfg.max_iters": 3}, {"train_cfg.max_epochs": None}):
        cfg = load_config(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=tiny_options | changes))
        with pytest.raises(ValueError, match="either max_epochs or max_iters"):
            build_runner(cfg).train()


def test_checkpoint_loads_with_weights_only_and_names_its_data(whole: Path) -> None:
    content = torch.load(whole / "iter_12.pth", weights_only=True)
    assert content["meta"]["iter"] == 12
    assert content["meta"]["dataset_meta"]["expressions_per_image"] == 6


def test_config_inside_a_checkpoint_is_not_executed(whole: Path, tmp_path: Path, tiny_options: dict) -> None:
    content = torch.load(whole / "iter_12.pth", weights_only=True)
    content["meta"]["config"] = "raise SystemExit('code was run')"
    torch.save(content, tmp_path / "iter_12.pth")
    runner = train(CONFIG, RunOptions(work_dir=str(tmp_path), cfg_options=every_four_steps(tiny_options), resume=True))
    assert runner.iter == 12


# Data-loading workers that die ----------------------------------------------------------------------------------------


class DeadlyDataset(Dataset):
    """12 items. Item `deadly` kills (or stops) the process that loads it, the first `times` times it is loaded."""

    def __init__(
        self, folder: Path, deadly: int = 7, times: int = 0, signal_number: signal.Signals = signal.SIGKILL
    ) -> None:
        self.folder, self.deadly, self.times, self.signal_number = folder, deadly, times, signal_number

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: SampleKey) -> tuple[int, int, int]:
        deaths = len(list(self.folder.glob("death_*")))
        if key.item == self.deadly and deaths < self.times:
            (self.folder / f"death_{deaths}").touch()
            os.kill(os.getpid(), self.signal_number)
        if self.times < 0:
            raise RuntimeError("no such thing")
        return tuple(key)


class ToyRunner:
    """The part of a runner that the loop uses. A step records its batch."""

    seed = 5
    optim_wrapper = None
    val_loop: Any = None

    def __init__(self) -> None:
        self.model = self
        self.batches: list = []

    def call_hook(self, name: str, **kwargs: object) -> None:
        pass

    def train(self) -> None:
        pass

    def train_step(self, batch: list, optim_wrapper: None) -> dict:
        self.batches.append([values.tolist() for values in batch])
        return {}


def toy_loop(dataset: DeadlyDataset, *, persistent: bool = True, num_workers: int = 2, **more: Any) -> Any:
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=EpochSampler(dataset),
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
    )
    return ResumableTrainLoop(ToyRunner(), loader, max_epochs=2, **more)


@pytest.fixture
def undisturbed(tmp_path: Path) -> list:
    """Return the batches of 2 epochs of 6, loaded without workers."""
    loop = toy_loop(DeadlyDataset(tmp_path), num_workers=0)
    loop.run()
    return loop.runner.batches


@pytest.mark.parametrize("persistent", [True, False])
def test_restarted_loader_continues_with_the_same_data(undisturbed: list, tmp_path: Path, persistent: bool) -> None:
    """After two deaths, the batches are those of a run without workers, in the same order."""
    dataset = DeadlyDataset(tmp_path, times=2)
    loop = toy_loop(dataset, persistent=persistent, max_worker_restarts=2)
    loop.run()
    assert len(list(tmp_path.glob("death_*"))) == loop.worker_restarts == 2
    assert len(undisturbed) == 12 and loop.runner.batches == undisturbed


def test_worker_that_dies_between_epochs(undisturbed: list, tmp_path: Path) -> None:
    """A persistent worker is killed while it waits for the next epoch."""
    loop = toy_loop(DeadlyDataset(tmp_path), max_worker_restarts=1)
    workers = []

    def kill_one(name: str, **kwargs: object) -> None:
        if name == "after_train_epoch" and not workers:
            workers.extend(loop.dataloader._iterator._workers)
            os.kill(workers[0].pid, signal.SIGKILL)

    loop.runner.call_hook = kill_one
    loop.run()
    assert loop.worker_restarts == 1 and loop.runner.batches == undisturbed
    assert not any(worker.is_alive() for worker in workers), "the other worker is stopped too"


def test_dead_worker_ends_the_training_with_a_remedy(undisturbed: list, tmp_path: Path) -> None:
    """All batches before the death were right, and a new loop continues from there."""
    loop = toy_loop(DeadlyDataset(tmp_path, times=1))
    with pytest.raises(TrainingError) as error:
        loop.run()
    assert re.match(
        r"a data-loading worker \(pid \d+\) died: killed by SIGKILL, probably because main memory ran out "
        r"\(iteration \d\)\. Continue from the last checkpoint with --resume\..*max_worker_restarts=3",
        str(error.value),
    )
    resumed = toy_loop(DeadlyDataset(tmp_path))
    resumed._iter = loop.iter
    resumed.run()
    assert loop.runner.batches + resumed.runner.batches == undisturbed


def test_hanging_loader_is_restarted_with_the_same_data(undisturbed: list, tmp_path: Path) -> None:
    """A worker is stopped but not dead. PyTorch alone would wait for its batch forever."""
    loop = toy_loop(DeadlyDataset(tmp_path, times=1, signal_number=signal.SIGSTOP), max_worker_restarts=1)
    assert loop.dataloader.timeout > 0, "a loader without a timeout gets one"
    loop.dataloader.timeout = 1
    loop.run()
    assert loop.worker_restarts == 1 and loop.runner.batches == undisturbed


def test_number_of_restarts_is_limited(tmp_path: Path) -> None:
    loop = toy_loop(DeadlyDataset(tmp_path, times=9), max_worker_restarts=1)
    with pytest.raises(TrainingError, match=r"after 1 restarts.*max_worker_restarts=4"):
        loop.run()
    assert len(list(tmp_path.glob("death_*"))) == 2


def test_dead_worker_of_the_validation(tmp_path: Path) -> None:
    class Validation:
        def run(self) -> None:
            dataset = DeadlyDataset(tmp_path, times=1)
            list(DataLoader(dataset, sampler=EpochSampler(dataset), num_workers=1))

    loop = toy_loop(DeadlyDataset(tmp_path), num_workers=0)
    loop.runner.val_loop = Validation()
    with pytest.raises(TrainingError, match=r"worker died.*\(validation after iteration 6\).*--resume"):
        loop.run()


def test_error_in_a_worker_does_not_count_as_death(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        toy_loop(DeadlyDataset(tmp_path, times=-1), max_worker_restarts=5).run()


@pytest.mark.parametrize("value", [-1, 1.5, "many"])
def test_number_of_restarts_must_be_a_whole_number(value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_worker_restarts must be a whole number"):
        toy_loop(DeadlyDataset(tmp_path), max_worker_restarts=value)


def test_worker_death_does_not_interrupt_a_step(tmp_path: Path) -> None:
    """PyTorch's handler of SIGCHLD raises in the main thread, even in the middle of a step."""
    dataset = DeadlyDataset(tmp_path)
    batches = iter(DataLoader(dataset, sampler=EpochSampler(dataset), num_workers=1))
    next(batches)
    handler = signal.getsignal(signal.SIGCHLD)
    with hold_back_worker_deaths(batches):
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        batches._workers[0].join()
    assert signal.getsignal(signal.SIGCHLD) is handler is not signal.SIG_DFL
    assert "killed by SIGKILL" in worker_death(batches)
    with hold_back_worker_deaths(batches):
        batches._shutdown_workers()
