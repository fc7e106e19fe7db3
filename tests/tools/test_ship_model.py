"""The tool that writes the folder of the model that ships, on a model with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from conftest import load_script
from refseg.errors import DataError, UsageError
from refseg.inference.loading import find_model
from refseg.weights import read_checkpoint
from work_dirs import WorkDir

CONFIG = "instalign_tiny_refshapes"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/dev/ship_model.py")


@pytest.fixture
def trained(work_dir: WorkDir, refshapes_tiny: Path, tmp_path: Path) -> Path:
    """Return a work directory as a training on RefShapes tiny leaves it."""
    folder = tmp_path / "trained"
    shutil.copytree(work_dir(CONFIG), folder)
    shutil.copy(refshapes_tiny / "words.txt", folder)
    (checkpoint,) = folder.glob("*.pth")
    version = json.loads((refshapes_tiny / "meta.json").read_text())["generator_version"]
    annotations = {"format": "jsonl", "file": str(refshapes_tiny / "refshapes.jsonl")}
    generated = {"preset": "tiny", "generator_version": version}
    meta = {"seed": 7, "iter": 30, "epoch": 2, "dataset_meta": {"annotations": annotations, "generated": generated}}
    torch.save(torch.load(checkpoint, weights_only=True) | {"meta": meta}, checkpoint)
    return folder


def test_folder(tool: ModuleType, trained: Path, refshapes_tiny: Path, tmp_path: Path) -> None:
    """The folder is a model, without paths of this machine, and its card has the facts and the numbers."""
    out = tmp_path / "shipped" / "refshapes"
    out.mkdir(parents=True)
    (out / "old.txt").touch()
    card = tool.ship(trained, out, data=refshapes_tiny).read_text()
    assert find_model(out) == (out / "config.json", out / "model.safetensors")
    assert {file.name for file in out.iterdir()} >= {"README.md", "words.txt", "examples.jsonl", "example_5.png"}
    assert not (out / "old.txt").exists() and [file.name for file in out.parent.iterdir()] == ["refshapes"]

    (checkpoint,) = trained.glob("*.pth")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    halved = load_file(out / "model.safetensors")
    assert halved.keys() == state.keys()
    for name, value in state.items():
        wanted = value.half() if value.is_floating_point() else value
        assert halved[name].dtype == wanted.dtype and torch.equal(halved[name], wanted)

    assert read_checkpoint(out / "model.safetensors")["meta"]["seed"] == 7, "the file says it, too"
    for file in (out / "config.json", out / "README.md"):
        assert str(tmp_path) not in file.read_text() and str(refshapes_tiny) not in file.read_text()
    assert "data/refshapes_tiny/refshapes.jsonl" in (out / "config.json").read_text()
    for fact in ("seed 7, epochs 2, steps 30", "RefShapes tiny, generator version", "7 images, 42 phrases",
                 "| refshapes.jsonl:test | refseg | gIoU |", "| no_target |",
                 "| pose | - | - | no: not in its training data |",
                 tool.sha256_of(out / "model.safetensors")):  # fmt: skip
        assert fact in card, fact


def test_failure_keeps_the_old_folder(tool: ModuleType, trained: Path, refshapes_tiny: Path, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = tmp_path / "shipped" / "refshapes"
    out.mkdir(parents=True)
    (out / "old.txt").touch()
    monkeypatch.setattr(tool, "MAX_BYTES", 1000)
    monkeypatch.setattr(tool, "score", lambda *_: ([], [], None))
    with pytest.raises(UsageError, match=r"bytes \(limit: 1,000\)"):
        tool.ship(trained, out, data=refshapes_tiny)
    assert [file.name for file in out.parent.rglob("*")] == ["refshapes", "old.txt"]


def test_wrong_data_and_weights(tool: ModuleType, trained: Path, work_dir: WorkDir, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no RefShapes in .*refseg data refshapes --preset tiny"):
        tool.ship(trained, tmp_path / "out", data=tmp_path)
    with pytest.raises(UsageError, match="not trained on a preset of RefShapes"):
        tool.ship(work_dir(CONFIG), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_levels_of_skills(tool: ModuleType) -> None:
    rows = [("size", 80.0), ("group", 79.9), ("no_target", 49.9)]
    table = tool.skill_rows([{"skill": name, "expressions": 4, "gIoU": score} for name, score in rows])
    assert "| size | 4 | 80.0 | yes |" in table and "| group | 4 | 79.9 | in part |" in table
    assert "| no_target | 4 | 49.9 | no |" in table and "| inside | - | - | no: not" in table
