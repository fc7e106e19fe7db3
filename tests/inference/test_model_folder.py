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
from fake_hub import FakeHub, running_hub
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
                 "seed 7, epochs 2, steps 30", "| license | unknown |", "Not measured."):  # fmt: skip
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


@pytest.fixture
def hub() -> FakeHub:
    with running_hub() as running:
        yield running


def python(program: str, hub: FakeHub, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a program that talks to the fake hub."""
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
                 "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPOSITORY / "projects")}  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=os.environ | variables | environment, capture_output=True, text=True)
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_hub(saved: Path, hub: FakeHub, tmp_path: Path) -> None:
    """Upload, download with consent only, and load from the cache when the hub is gone."""
    (saved / "evil.py").write_text("raise SystemExit('the program was run')")
    pushed = python(
        f"from refseg import ReferringInferencer\nprint(ReferringInferencer({str(saved)!r}, device='cpu')"
        ".push_to_hub('user/shapes', license='mit'))",
        hub,
        tmp_path / "sender",
    )
    (saved / "evil.py").unlink()
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.endpoint}/user/shapes/commit/" in pushed.stdout and f"Bearer {TOKEN}" in hub.tokens
    files = hub.files["user/shapes"]
    assert files.keys() >= {"config.json", "model.safetensors", "words.txt", "README.md"} and "evil.py" not in files
    assert b"# shapes" in files["README.md"] and b"license: mit" in files["README.md"]

    # Not allowed: no request is made
    files["evil.py"] = b"raise SystemExit('the program was run')"
    hub.requests.clear()
    program = "from refseg.cli import main; import sys; sys.exit(main(['flops', 'user/shapes']))"
    refused = python(program, hub, tmp_path / "home", REFSEG_ALLOW_DOWNLOAD="0")
    assert refused.returncode == 1 and "not in the local hub cache. Pass --allow-download" in refused.stderr
    assert not hub.requests

    # Allowed, then offline; programs are not downloaded
    for allowed in ("1", "0"):
        program = (
            "from refseg import ReferringInferencer\n"
            "model = ReferringInferencer.from_pretrained('user/shapes', revision='main', device='cpu')\n"
            "print(model.loaded.config.parent)"
        )
        done = python(program, hub, tmp_path / "home", REFSEG_ALLOW_DOWNLOAD=allowed)
        assert done.returncode == 0, done.stderr
        cached = Path(done.stdout.strip().splitlines()[-1])
        assert cached.is_relative_to(tmp_path / "home") and not (cached / "evil.py").exists()
        hub.files.clear()


def test_hub_errors(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["user/bert"] = {"model.safetensors": b""}
    program = """
from refseg.errors import UserError
from refseg.inference.hub import push_folder
from refseg.inference.loading import find_model
from pathlib import Path
for name in ("user/nothing", "user/bert"):
    try:
        find_model(name)
    except UserError as error:
        print(error)
try:
    push_folder(Path("missing"), "user/new", private=None, revision=None, message="", token=None)
except UserError as error:
    print(error)
"""
    done = python(program, hub, tmp_path, REFSEG_ALLOW_DOWNLOAD="1")
    assert done.returncode == 0, done.stderr
    nothing, bert, upload = done.stdout.splitlines()
    assert "user/nothing cannot be downloaded (RepositoryNotFoundError" in nothing
    assert "user/bert is not a model of refseg: it has no config.json" in bert
    assert "missing cannot be uploaded to user/new" in upload


def test_names_that_are_not_on_a_hub() -> None:
    """Names of configs and paths do not become names on the hub, and unknown ones say so."""
    assert find_config("instalign/instalign_tiny_refshapes").suffix == ".py"
    with pytest.raises(CheckpointError, match=r"neither a work directory.*on the hub: nobody/nothing is not in the"):
        find_model("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"no such checkpoint: runs/none\.pth"):
        find_model("runs/none.pth")
    with pytest.raises(UsageError, match="not a name on the hub"):
        ReferringInferencer.from_pretrained("nobody/nothing/more")
