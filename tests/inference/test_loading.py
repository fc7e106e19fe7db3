"""Finding and loading models: configs, checkpoints and work directories."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.files import sha256_of
from refseg.inference.loading import ALIGNMENT, find_device, find_model, load_model, measured_alignment
from refseg.paths import resolve_config

CONFIG = "instalign_tiny_refshapes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text("raise AssertionError('the config was run')")
    for age, name in enumerate(("best_a_epoch_2.pth", "best_a_epoch_1.pth", "epoch_3.pth")):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (100 - age, 100 - age))
    return tmp_path


def test_find_model(folder: Path) -> None:
    config, best = folder / "mine.py", folder / "best_a_epoch_2.pth"
    assert find_model(folder) == (config, best)
    assert find_model(best) == (config, best)
    assert find_model(folder, folder / "epoch_3.pth") == (config, folder / "epoch_3.pth")
    assert find_model(config, folder) == (config, best)
    assert find_model(CONFIG, best) == (resolve_config(CONFIG), best)
    for path in folder.glob("best_*"):
        path.unlink()
    assert find_model(folder) == (config, folder / "epoch_3.pth")


def test_find_model_errors(folder: Path) -> None:
    with pytest.raises(UsageError, match="a config without weights"):
        find_model(CONFIG)
    with pytest.raises(UsageError, match="already a checkpoint"):
        find_model(folder / "epoch_3.pth", folder / "epoch_3.pth")
    with pytest.raises(CheckpointError, match=r"no such checkpoint: .*none\.pth"):
        find_model(folder / "none.pth")
    with pytest.raises(UsageError, match=r"neither a work directory nor a checkpoint.*did you mean"):
        find_model("instalign_tiny_refshape", folder)
    (folder / "other.py").write_text("")
    with pytest.raises(CheckpointError, match=r"2 configs \(mine.py, other.py\)"):
        find_model(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"No config in .*\. Name the config"):
        find_model(folder / "epoch_3.pth")
    for path in folder.glob("*.pth"):
        path.unlink()
    (folder / "mine.py").write_text("")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*There are no weights"):
        find_model(folder)
    (folder / "model.safetensors").touch()
    assert find_model(folder) == (folder / "mine.py", folder / "model.safetensors")
    (folder / "model.pth").touch()
    with pytest.raises(CheckpointError, match=r"Name one of model\.pth, model\.safetensors"):
        find_model(folder)


def test_config_in_a_checkpoint_is_not_run(work_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """If the text under `meta` were run, it would create a file."""
    for source in work_dir(CONFIG).iterdir():
        shutil.copy(source, tmp_path)
    (checkpoint,) = tmp_path.glob("*.pth")
    content = torch.load(checkpoint, weights_only=True)
    content["meta"] = dict.fromkeys(("config", "cfg"), f"open({str(tmp_path / 'run')!r}, 'w')")
    torch.save(content, checkpoint)
    loaded = load_model(checkpoint, device="cpu")
    assert loaded.config.parent == tmp_path and not (tmp_path / "run").exists()


def test_config_without_pipeline(work_dir: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="neither test_dataloader nor val_dataloader has a pipeline"):
        load_model(work_dir(CONFIG), device="cpu", cfg_options={"test_dataloader": None, "val_dataloader": None})


def test_weights_of_another_model(work_dir: Callable[[str], Path]) -> None:
    (other,) = work_dir("lavt_tiny_refshapes").glob("*.pth")
    with pytest.raises(CheckpointError, match="does not fit InstAlign"):
        load_model(work_dir(CONFIG), other, device="cpu")


def test_measured_alignment(tmp_path: Path) -> None:
    """Chance is 50 of 100 with a standard error of 5, so pointing must be above 60. Only the measured weights count."""
    checkpoint, file = tmp_path / "best.pth", tmp_path / ALIGNMENT
    checkpoint.write_bytes(b"weights")

    def measured(pointing: float | None, *, matched: int = 100, sha256: str = sha256_of(checkpoint)) -> bool:
        scores = {"matched": matched, "pointing": pointing, "pointing_chance": 50.0}
        made_with = {"checkpoint": {"sha256": sha256}}
        file.write_text(json.dumps({"alignment": {"all words": scores}, "predictions": {"header": made_with}}))
        return measured_alignment(checkpoint)

    assert not measured_alignment(checkpoint), "there is no alignment.json"
    assert measured(61.0) and not measured(60.0) and not measured(None, matched=0)
    assert not measured(61.0, sha256="of others") and measured(61.0, matched=101)
    file.write_text("{}")
    with pytest.warns(UserWarning, match="is ignored: not what `refseg score --alignment --json` writes"):
        assert not measured_alignment(checkpoint)


def test_devices() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="Unknown device 'gpu'"):
        find_device("gpu")
    with pytest.raises(UsageError, match="PyTorch sees"):
        find_device("cuda:99")
