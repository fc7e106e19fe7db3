"""`refseg finetune` from a file to a model: data checks, splits, starts, resuming, and what the folder holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from conftest import REPOSITORY
from finetuning.conftest import TINY
from refseg.cli.main import main
from refseg.engine.run import load_config
from refseg.errors import ConfigError, DataError, UsageError
from refseg.finetuning import run
from refseg.finetuning.run import CONFIG, Request, finetune, prepare
from refseg.inference.inferencer import ReferringInferencer
from tiny_models import BUILDERS


def test_the_folder_is_a_model_with_a_report(finetuned: Path, refshapes_images: list[str]) -> None:
    (answer,) = ReferringInferencer(finetuned)(refshapes_images[0], ["the red circle"])
    assert answer.raw_mask.shape == (96, 96)
    assert (finetuned / "report.html").stat().st_size > 10_000
    assert set(json.loads((finetuned / "scores.json").read_text())["scores"]) == {"val"}
    rows = [json.loads(line) for line in (finetuned / "data.jsonl").read_text().splitlines()]
    splits = {row["image"]: row["split"] for row in rows}
    assert set(splits.values()) == {"train", "val"}
    assert all(splits[row["image"]] == row["split"] for row in rows), "an image belongs to one split"


def test_the_config_is_an_ordinary_one(finetuned: Path) -> None:
    cfg = load_config(str(finetuned / CONFIG))
    assert cfg.train_cfg.max_iters == 2
    assert 0 <= cfg.train_dataloader.dataset.hard_negative_rate < 0.15  # the data have some of their own


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_is_not_trained_again(own: Path, finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = finetune(own, model="scratch", out=finetuned, steps=2, image_size=64, cfg_options=TINY)
    assert "continuing from the finished training" in capsys.readouterr().out
    assert again.scores["val"].keys() >= {"gIoU", "N-acc"}


@pytest.mark.usefixtures("no_report", "no_measurement")
def test_a_training_that_stopped_early_is_finished(own: Path, tmp_path: Path) -> None:
    """The time limit ends it after one of eight validations."""
    options = dict(model="scratch", out=tmp_path / "out", seconds=0.01, image_size=64, cfg_options=TINY)
    finetune(own, **options)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.pth"))
    assert files and "iter_8.pth" not in files
    finetune(own, **options)
    assert files == sorted(file.name for file in (tmp_path / "out").glob("*.pth"))


def test_another_request_needs_another_folder(own: Path, finetuned: Path) -> None:
    with pytest.raises(UsageError, match="holds another fine-tuning: steps differ"):
        finetune(own, model="scratch", out=finetuned, steps=3, image_size=64, cfg_options=TINY)


@pytest.mark.usefixtures("no_measurement")
def test_start_from_a_model_of_your_own(own: Path, finetuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    prepare(Request(str(own), str(finetuned), str(out), steps=2))
    cfg = load_config(str(out / CONFIG))
    assert Path(cfg.load_from).parent == finetuned
    assert cfg.model.embed_dim == 32
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert kinds == ["LoadImage", "RandomFlip", "Resize", "LoadText", "PackSample"]
    assert cfg.train_dataloader.dataset.pipeline[2]["size"] == (64, 64), "the size that the model was trained at"


def test_the_folder_of_the_data_stays_as_it_is(own: Path, finetuned: Path) -> None:
    assert {file.name for file in own.parent.iterdir()} - {".refseg_cache"} == {"own.jsonl"}
    assert (finetuned / "words.txt").is_file()


@pytest.mark.usefixtures("no_measurement")
def test_a_start_that_failed_can_be_repeated(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is neither a work directory"):
        prepare(Request(str(own), "nonsense", str(tmp_path / "out"), steps=2))
    prepare(Request(str(own), "scratch", str(tmp_path / "out"), steps=2, image_size=64, cfg_options=TINY))


def test_a_batch_that_does_not_fit_is_halved(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(cfg: Config) -> tuple[float, float, list[str]]:
        if cfg.train_dataloader.batch_size > limit:
            raise torch.OutOfMemoryError
        return 1.0, 1.0, []

    monkeypatch.setattr(run, "measure", measure)
    limit = 2
    request = Request(str(own), "scratch", str(tmp_path / "out"), steps=6, image_size=64, cfg_options=TINY)
    prepare(request)
    cfg = load_config(str(tmp_path / "out" / CONFIG))
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts) == (2, 2)
    assert cfg.train_cfg.max_iters == 12 and "12 steps, 2 of them per update" in capsys.readouterr().out
    limit = 0
    with pytest.raises(UsageError, match="one image of 64 does not fit into the GPU's memory"):
        prepare(replace(request, out=str(tmp_path / "other")))


@pytest.mark.usefixtures("no_report")
def test_start_from_clipseg(
    own: Path, refshapes_images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model by name, with its weights in the data root. The result answers without them."""
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    weights = tmp_path / "weights" / "clipseg-rd64-refined"
    BUILDERS["clipseg"](weights)
    tuned = finetune(own, model="clipseg", out=tmp_path / "out", steps=2)
    assert tuned.scores["val"].keys() >= {"gIoU", "T-acc"}
    shutil.rmtree(weights)
    (answer,) = ReferringInferencer(tmp_path / "out")(refshapes_images[0], ["the red circle"])
    assert answer.raw_mask.shape == (96, 96)


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        ("minilm+efficientnet_lite0", r"Did you mean efficientnet_lite0\+minilm\?"),
        ("minilm+minilm", r"An example is efficientnet_lite0\+minilm\."),
    ],
)
def test_a_pair_is_an_image_model_and_a_text_model(own: Path, tmp_path: Path, start: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"an encoder pair is an image model of timm and a text model\. {hint}"):
        prepare(Request(str(own), start, str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_trained(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sam3 cannot be trained. Start from clipseg"):
        prepare(Request(str(own), "sam3", str(tmp_path / "out")))


def test_freeze(own: Path, tmp_path: Path) -> None:
    request = Request(str(own), "scratch", str(tmp_path / "out"), steps=2, freeze=("speech",))
    with pytest.raises(UsageError, match=r"--freeze speech: InstAlign has no encoder.speech. Valid: .*vision"):
        prepare(request)
    with pytest.raises(ConfigError, match=r"encoder.vision.*frozen"):  # the small encoder cannot be frozen
        prepare(replace(request, freeze=("vision",)))


def test_defects_stop_the_run(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    lines = own.read_text().splitlines()
    file.write_text("\n".join([*lines[:10], lines[10].replace('"targets"', '"target"')]))
    with pytest.raises(DataError, match="the data has defects"):
        prepare(Request(str(file), "scratch", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_one_image_is_not_enough(own: Path, tmp_path: Path) -> None:
    lines = own.read_text().splitlines()
    image = json.loads(lines[0])["image"]
    file = tmp_path / "one.jsonl"
    file.write_text("\n".join(line for line in lines if json.loads(line)["image"] == image))
    with pytest.raises(DataError, match=r"has one image. At least two are needed"):
        prepare(Request(str(file), "scratch", str(tmp_path / "out")))


@pytest.mark.usefixtures("no_measurement")
def test_splits_of_the_user_stay(own: Path, tmp_path: Path) -> None:
    """Rows without a split are for training if others are for val. A split of another name is an error."""
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    images = sorted({row["image"] for row in rows})
    for name, split in (("val", "val"), ("valid", "validation")):
        for row in rows:
            row.pop("split", None)
            row |= {"split": split} if row["image"] == images[0] else {}
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(Request(str(tmp_path / "val.jsonl"), "scratch", str(tmp_path / "out"), steps=2, cfg_options=TINY))
    written = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert [row["split"] == "val" for row in written] == [row["image"] == images[0] for row in rows]
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps({**row, "split": "val"}) for row in rows))
    with pytest.raises(DataError, match=r"all.jsonl: no row is for training"):
        prepare(Request(str(tmp_path / "all.jsonl"), "scratch", str(tmp_path / "none"), steps=2))
    with pytest.raises(DataError, match=r"split 'validation' is unknown. Rename it to train, val, or test"):
        prepare(Request(str(tmp_path / "valid.jsonl"), "scratch", str(tmp_path / "other"), steps=2))


def test_data_without_a_target(own: Path, tmp_path: Path) -> None:
    rows = [{**json.loads(line), "targets": None, "instance_ids": None} for line in own.read_text().splitlines()]
    (tmp_path / "none.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"none.jsonl: no training phrase has a target"):
        prepare(Request(str(tmp_path / "none.jsonl"), "scratch", str(tmp_path / "out"), steps=2))
    with pytest.raises(DataError, match=r"is a folder. `refseg data import"):
        prepare(Request(str(tmp_path), "scratch", str(tmp_path / "out")))
    with pytest.raises(UsageError, match=r"--out .*none.jsonl is a file. Choose a folder"):
        prepare(Request(str(own), "scratch", str(tmp_path / "none.jsonl")))


def test_a_foreign_folder_is_not_touched(own: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty, and no fine-tuning made it"):
        prepare(Request(str(own), "scratch", str(tmp_path)))


@pytest.mark.slow
def test_two_processes(own: Path, tmp_path: Path) -> None:
    options = [f"{key}={value}" for key, value in flat(TINY)]
    arguments = ["--from", "scratch", "--out", str(tmp_path / "out"), "--steps", "2", "--image-size", "64"]
    command = ["bash", str(REPOSITORY / "tools/dist_finetune.sh"), str(own), "2", *arguments, "--cfg-options", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert (tmp_path / "out" / "report.html").is_file()


def flat(options: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_command(own: Path, finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", str(own) + "x", "--out", str(finetuned)]) == 1
    assert "no such file" in capsys.readouterr().err
