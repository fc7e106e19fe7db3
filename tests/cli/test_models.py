"""`refseg models`, on folders that stand for weights and work directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refseg.cli.main import main
from refseg.engine.run import read_config
from refseg.errors import UsageError
from refseg.inference.loading import find_config, find_model
from refseg.known_models import ABILITIES, KNOWN_MODELS, WEIGHTS, find_weights_of, weights_in
from refseg.paths import resolve_config


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with an empty hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFSEG_DATA", raising=False)
    monkeypatch.delenv("REFSEG_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def make_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()


def shown(capsys: pytest.CaptureFixture, *words: str) -> Any:
    assert main(["models", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_known_models_name_weights_that_are_known() -> None:
    used = set()
    for model in KNOWN_MODELS.values():
        cfg = read_config(resolve_config(model.config)).model
        named = {cfg[key] for key in ("detector", "masks", "pretrained") if key in cfg}
        assert named == set(weights_in(cfg)) and set(model.abilities) <= set(ABILITIES)
        used |= named
    assert used == set(WEIGHTS)


def test_table(capsys: pytest.CaptureFixture) -> None:
    assert main(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line and not line.startswith("`")]
    assert names == ["refshapes", *KNOWN_MODELS] and head.startswith("name")


def test_weights_are_found_in_the_data_folder(capsys: pytest.CaptureFixture) -> None:
    assert not shown(capsys, "grounded-sam2-tiny")["available"]
    make_weights(Path("data/weights/grounding-dino-tiny"))
    entry = shown(capsys, "grounded-sam2-tiny")
    assert not entry["available"]
    assert [any(weights["places"].values()) for weights in entry["weights"]] == [True, False]
    make_weights(Path("facebook/sam2.1-hiera-tiny"))
    assert shown(capsys, "grounded-sam2-tiny")["available"]
    (Path("data/weights/grounding-dino-tiny") / "model.safetensors").unlink()
    assert find_weights_of("IDEA-Research/grounding-dino-tiny") is None, "an incomplete download"


def test_details(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "sam3"]) == 0
    out = capsys.readouterr().out
    assert "Gated" in out and "hf auth login" in out and "SAM License" in out
    assert "hf download facebook/sam3" in out and "data/weights/sam3: no" in out
    assert "refseg predict sam3 --image" in out


def test_trained_models_are_listed(
    work_dir: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = work_dir("baseline_tiny_refshapes")
    Path("work_dirs/no_checkpoint").mkdir(parents=True)
    Path("work_dirs/mine").symlink_to(folder)
    Path("named").mkdir()
    Path("named/shop").symlink_to(folder)
    monkeypatch.setenv("REFSEG_MODELS", "named")
    models = {model["name"]: model for model in shown(capsys)}
    assert {"shop", "work_dirs/mine"} == set(models) - {"refshapes", *KNOWN_MODELS}
    assert models["shop"]["summary"].startswith("QueryBaseline trained on ")
    assert main(["models", "shop"]) == 0 and "best_refseg_gIoU" in capsys.readouterr().out


def test_unknown_names_suggest_the_closest(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "sam33"]) == 1
    assert "Unknown model 'sam33'. Did you mean sam3?" in capsys.readouterr().err
    for find in (find_model, find_config):
        with pytest.raises(UsageError, match=r"nor the name of a model. Did you mean grounded-sam2"):
            find("grounded-sam")
        with pytest.raises(UsageError, match=r"`refseg models` lists the names"):
            find("xyzzy")
