"""`refseg publish`: model folders with measured cards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from refseg.cli import main
from refseg.engine.run import load_config
from refseg.evaluation.scorer import open_data
from refseg.inference import hub
from refseg.publish.run import shared_images
from work_dirs import WorkDir


@pytest.mark.slow
def test_publish_and_add_scores(
    work_dir: WorkDir, refshapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Publish a work directory, test the folder, and add the scores to its card. Other weights are refused."""
    monkeypatch.chdir(tmp_path)
    source, data = tmp_path / "runs", str(refshapes_tiny / "refshapes.jsonl")
    shutil.copytree(work_dir("baseline_tiny_refshapes"), source)
    shutil.copy(refshapes_tiny / "words.txt", source)
    assert main(["publish", "runs", "--out", "half", "--half", "--license", "mit"]) == 0
    assert "half: " in capsys.readouterr().out and {f.name for f in Path("half").iterdir()} >= {"words.txt"}

    options = [f"test_dataloader.dataset.annotations.file={data}", "visualizer.vis_backends=[]"]
    assert main(["test", "half", "--split", "test", "--predictions", "p.jsonl", "--cfg-options", *options]) == 0
    scores = ["--predictions", "p.jsonl", "--data", f"{data}:test"]
    assert main(["publish", "half", "--out", "half", *scores]) == 0  # the license stays
    card = Path("half/README.md").read_text()
    assert re.search(r"\| refshapes.jsonl:test \| refseg \| gIoU \| \d+\.\d\d \| \d+\.\d\d to \d+\.\d\d \|", card)
    assert "7 images, 42 phrases. Training images among them: unknown (the training data" in card
    assert str(tmp_path) not in card and str(refshapes_tiny) not in card
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit" and header["library_name"] == "refseg"
    assert {"gIoU"} <= {one["type"] for one in header["model-index"][0]["results"][0]["metrics"]}

    # An upload of the folder leaves it as it is
    uploaded: list[Path] = []
    monkeypatch.setattr(hub, "push_folder", lambda folder, name, **_: uploaded.append(folder) or "address")
    assert main(["publish", "half", "--out", "half", "--push", "me/half"]) == 0
    assert [folder.name for folder in uploaded] == ["half"] and Path("half/README.md").read_text() == card

    # The work directory has 32 bits per number: the predictions are not of its weights
    capsys.readouterr()
    assert main(["publish", "runs", "--out", "full", *scores]) == 1
    assert "p.jsonl was made by other weights" in capsys.readouterr().err
    assert main(["publish", "runs", "--out", "full", "--half", *scores]) == 1
    assert "--half changes the weights" in capsys.readouterr().err
    assert main(["publish", "runs", "--out", "full", *scores[:2]]) == 1
    assert "--predictions has 1 files and --data 0 sets" in capsys.readouterr().err
    assert not Path("full").exists()


def test_images_shared_with_training(tiny_config: Path, refshapes_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(str(tiny_config))
    for split, expected in (("test", "0 of 7"), ("train", "24 of 24")):
        assert shared_images(cfg, open_data(f"{refshapes_tiny / 'refshapes.jsonl'}:{split}")) == expected
    cfg.train_dataloader.dataset.annotations.file = "nowhere.jsonl"
    assert shared_images(cfg, open_data(f"{refshapes_tiny / 'refshapes.jsonl'}:test")).startswith("unknown (")


def test_models_of_others_are_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture, folders: dict[str, str]
) -> None:
    options = [f"model.pretrained={folders['clipseg']}"]
    assert main(["publish", "clipseg", "--out", str(tmp_path / "out"), "--cfg-options", *options]) == 1
    assert "loads published weights of others" in capsys.readouterr().err and not (tmp_path / "out").exists()
