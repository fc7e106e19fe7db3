"""Data of a user, and a model that was fine-tuned on it: shared by the tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refseg.cli.main import main
from refseg.finetuning import run
from refseg.finetuning.run import finetune

TINY = {  # changes that make the model small
    "model.embed_dim": 32,
    "model.mask_dim": 16,
    "model.pixel_decoder": dict(embed_dim=16, num_layers=1, num_heads=2, ffn_dim=16),
    "model.decoder": dict(num_queries=4, num_blocks=2, num_heads=2, ffn_dim=16),
}


@pytest.fixture(scope="session")
def own(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data without splits: the import of a COCO file with eight images of RefShapes tiny."""
    rows = [json.loads(line) for line in (refshapes_tiny / "refshapes.jsonl").read_text().splitlines()]
    names = sorted({row["image"] for row in rows})[:8]
    labeled, coco = refshapes_tiny / "labeled.jsonl", tmp_path_factory.mktemp("labels") / "coco.json"
    lines = [json.dumps({key: row[key] for key in ("image", "size", "text", "targets")})
             for row in rows if row["image"] in names]  # fmt: skip
    labeled.write_text("\n".join(lines))
    assert main(["data", "export", str(labeled), "--to", "coco", "--out", str(coco)]) == 0
    file = tmp_path_factory.mktemp("own") / "own.jsonl"
    images = str((refshapes_tiny / names[0]).parent)
    assert main(["data", "import", str(coco), "--images", images, "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="session")
def finetuned(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    finetune(own, model="scratch", out=out, steps=2, image_size=64, cfg_options=TINY)
    return out


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, half of the time of a short fine-tuning."""
    monkeypatch.setattr(run, "write_report", lambda *args: None)


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the two steps that are measured before a training."""
    monkeypatch.setattr(run, "measure", lambda cfg: (1.0, 1.0, []))
