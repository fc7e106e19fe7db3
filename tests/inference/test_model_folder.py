"""Model folders: written, found, and read again, on this machine and on a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import REPOSITORY
from refseg.errors import CheckpointError, UsageError
from refseg.finetuning.run import own_image_size
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.loading import find_config, find_model
from refseg.inference.model_card import encoders_of
from refseg.inference.model_folder import write_weights
from refseg.weights import read_checkpoint
from work_dirs import WorkDir

CONFIG = "instalign_tiny_refshapes"
TOKEN = "hf_" + "secret" * 5
META = {"seed": 7, "iter": 30, "epoch": 2, "cfg": "secret = '/home/me'", "hook_msgs": {"a": 1}}


@pytest.fixture(scope="session")
def trained(work_dir: WorkDir, refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work directory as a training leaves it, with an optimizer's state and the words."""
    folder = tmp_path_factory.mktemp("trained") / "work_dir"
    shutil.copytree(work_dir(CONFIG), folder)
    shutil.copy(refshapes_tiny / "words.txt", folder)
    (checkpoint,) = folder.glob("*.pth")
    annotations = {"format": "jsonl", "file": str(refshapes_tiny / "refshapes.jsonl")}
    data = {"annotations": annotations, "split": "train", "generated": {"preset": "tiny", "generator_version": 3},
            "leak_filter": {"against": [], "dropped_images": 0, "dropped_expressions": 0}}  # fmt: skip
    content = torch.load(checkpoint, weights_only=True)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1000)}}}
    torch.save(content | {"meta": {**META, "dataset_meta": data}, "optimizer": optimizer}, checkpoint)
    return folder


@pytest.fixture(scope="session")
def saved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "shapes"
    ReferringInferencer(trained, device="cpu").save_pretrained(folder)
    return folder


def test_same_answers_anywhere(
    trained: Path, saved: Path, refshapes_images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is complete: it answers from another place, without the data and the work directory."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(saved, moved)
    monkeypatch.chdir(tmp_path)
    assert {file.name for file in moved.iterdir()} == {"config.json", "model.safetensors", "words.txt", "README.md"}
    expected = ReferringInferencer(trained, device="cpu")(refshapes_images[0], ["the red circle", "all stars"])
    for model in (moved, str(moved / "model.safetensors")):
        answer = ReferringInferencer(model, device="cpu")(refshapes_images[0], ["the red circle", "all stars"])
        for mine, wanted in zip(answer, expected, strict=True):
            assert (mine.mask == wanted.mask).all() and mine.no_target_prob == wanted.no_target_prob
    assert own_image_size(str(moved)) == 96  # `refseg finetune --from` reads it, too


def test_slim_and_portable(saved: Path, trained: Path, refshapes_tiny: Path) -> None:
    (checkpoint,) = trained.glob("*.pth")
    assert (saved / "model.safetensors").stat().st_size < checkpoint.stat().st_size
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    written = load_file(saved / "model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    with safe_open(saved / "model.safetensors", "pt") as file:
        texts = [json.dumps(file.metadata()), (saved / "config.json").read_text(), (saved / "README.md").read_text()]
    for text in texts:
        assert str(trained.parent) not in text and str(refshapes_tiny.parent) not in text and "/home/me" not in text
    meta = read_checkpoint(saved / "model.safetensors")["meta"]
    assert meta["seed"] == 7 and meta["checkpoint"] == checkpoint.name and "hook_msgs" not in meta


def test_card(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    for fact in ("# shapes\n", "InstAlign, config `instalign_tiny_refshapes`", "32-bit weights", "license: unknown",
                 "refshapes.jsonl, split train (RefShapes tiny, generator version 3)", "no filter was set",
                 "seed 7, epochs 2, steps 30", "| started from | no whole model |",
                 "| license | unknown |", "Not measured."):  # fmt: skip
        assert fact in card, fact


def test_encoders_and_their_licenses() -> None:
    model = {
        "text": {"type": "TextEncoder", "pretrained": "minilm"},
        "vision": {"type": "TimmEncoder", "pretrained": True, "name": "tf_efficientnet_lite0"},
        "head": {"type": "Head", "pretrained": "weights.pth"},
        "other": {"type": "Other", "pretrained": None, "init_cfg": {"checkpoint": "resnet50.pth"}},
    }
    assert list(encoders_of(model)) == [
        "TextEncoder: minilm (license: Apache-2.0)",
        "TimmEncoder: tf_efficientnet_lite0 (license: apache-2.0)",
        "Head: weights.pth (license: unknown)",
        "Other: resnet50.pth (license: unknown)",
    ]


def test_half_is_kept(saved: Path, tmp_path: Path) -> None:
    """16 bits halve the file, and a copy of a 16-bit model has them too: it is the same file."""
    ReferringInferencer(saved, device="cpu").save_pretrained(tmp_path / "half", half=True, license="mit")
    size = (saved / "model.safetensors").stat().st_size
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.52 * size
    ReferringInferencer.from_pretrained(tmp_path / "half", device="cpu").save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "16-bit weights" in (tmp_path / "again/README.md").read_text()


def test_half_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a has values that 16 bits cannot hold \(largest: 1e\+06\)"):
        write_weights({"a": torch.tensor([1e6])}, tmp_path / "a.safetensors", half=True, meta={})


def test_what_may_be_replaced(saved: Path, tmp_path: Path) -> None:
    inferencer = ReferringInferencer(saved, device="cpu")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="not empty and not a model folder"):
        inferencer.save_pretrained(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "old.txt").touch()
    inferencer.save_pretrained(copy)
    assert not (copy / "old.txt").exists() and sorted(os.listdir(tmp_path)) == ["copy", "mine.txt"]


def test_config_json_goes_before_programs(saved: Path, tmp_path: Path) -> None:
    """A stranger's program beside the config.json is not run."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model/evil.py").write_text("raise SystemExit('the program was run')")
    assert find_config(tmp_path / "model").name == "config.json"
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(UsageError):
        ReferringInferencer.from_pretrained(tmp_path / "model", device="cpu")


# Hub ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hub(saved: Path, tmp_path: Path) -> None:
    """Uploads, downloads, consent, and errors, on a fake hub. The token is not printed."""
    (saved / "evil.py").write_text("raise SystemExit('the program was run')")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("hub_program.py")), str(saved)]
    paths = os.pathsep.join([str(REPOSITORY / "projects"), str(REPOSITORY / "tests")])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([*command, str(tmp_path), TOKEN], env=environment, capture_output=True, text=True)
    (saved / "evil.py").unlink()
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_names_that_are_not_on_a_hub() -> None:
    """Names of configs and paths do not become names on the hub, and unknown ones say so."""
    assert find_config("instalign/instalign_tiny_refshapes").suffix == ".py"
    with pytest.raises(CheckpointError, match=r"neither a work directory.*on the hub: nobody/nothing is not in the"):
        find_model("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"no such checkpoint: runs/none\.pth"):
        find_model("runs/none.pth")
    with pytest.raises(UsageError, match="not a name on the hub"):
        ReferringInferencer.from_pretrained("nobody/nothing/more")
