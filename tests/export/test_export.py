"""`refseg export`, from the command to answers of the exported folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refseg.cli import main
from refseg.errors import CheckpointError, ConfigError
from refseg.export import run
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.loading import find_config, find_model
from tiny_models import BUILDERS

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
CONFIG = "baseline_tiny_refshapes"
PHRASES = ["the red circle", "all stars", "the lower white thing"]


@pytest.fixture(scope="module")
def model(work_dir: Callable[[str], Path]) -> Path:
    return work_dir(CONFIG)


@pytest.fixture(scope="module")
def exported(model: Path, refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model, moved after the export."""
    root = tmp_path_factory.mktemp("export")
    data = f"{refshapes_tiny}/refshapes.jsonl:test"
    argv = ["export", str(model), "--out", str(root / "first"), "--int8", "--min-int8-iou", "0"]
    assert main([*argv, "--data", data, "--samples", "3"]) == 0
    return (root / "first").rename(root / "moved")


@pytest.fixture
def no_tracing(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take graphs that were made before, since making them takes long."""

    def copy_graphs(model: object, folder: Path, **_: object) -> tuple[list[Path], str]:
        return [Path(shutil.copy(graph, folder)) for graph in sorted(exported.glob("*.onnx"))], ""

    monkeypatch.setattr(run, "write_graphs", copy_graphs)


def test_report_of_the_comparison(exported: Path) -> None:
    report = json.loads((exported / "export.json").read_text())
    assert report["image_sizes"] == "multiples of 16 x 16"
    rows = report["parity"]
    names = ["PyTorch", "ONNX", "ONNX int8"]
    assert list(rows) == [*names, *(f"{name} 112 x 128" for name in names)]
    assert rows["ONNX 112 x 128"]["max_logit_difference"] < 1e-3
    assert rows["PyTorch"]["max_logit_difference"] == 0
    assert rows["ONNX"]["max_logit_difference"] < 1e-3 and rows["ONNX"]["changed"] == 0
    assert rows["ONNX"]["gIoU"] == pytest.approx(rows["PyTorch"]["gIoU"], abs=0.1)
    assert rows["ONNX int8"]["max_logit_difference"] > rows["ONNX"]["max_logit_difference"]
    sizes = [(folder / "phrases.onnx").stat().st_size for folder in (exported, exported / "int8")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("folder", ["", "int8"])
def test_folder_is_a_model(exported: Path, folder: str) -> None:
    """The graphs, their config, and the words are in one folder, and each of them names the model."""
    folder = exported / folder
    assert find_model(folder) == find_model(folder / "phrases.onnx") == (folder / run.CONFIG, None)
    assert find_config(folder / "image.onnx") == folder / run.CONFIG
    assert (folder / "words.txt").is_file()


def test_answers_are_those_of_the_original(model: Path, exported: Path, refshapes_images: list[str]) -> None:
    """Check the answers to several images at once, and those of a session, which keeps the image."""
    ours, theirs = (ReferringInferencer(folder, device="cpu") for folder in (model, exported))
    assert theirs.shares_images
    for expected, found in zip(ours(refshapes_images, PHRASES), theirs(refshapes_images, PHRASES), strict=True):
        for one, other in zip(expected, found, strict=True):
            assert np.mean(one.mask != other.mask) < 0.001
            assert one.no_target_prob == pytest.approx(other.no_target_prob, abs=1e-4)
    session = theirs.session(refshapes_images[0])
    assert [answer.text for answer in session(PHRASES[:2])] == PHRASES[:2]


def test_images_are_resized_by_the_rule_of_the_config(model: Path, exported: Path, refshapes_images: list[str]) -> None:
    options = {"test_dataloader.dataset.pipeline.1.size": [64, 128]}
    ours, theirs = (ReferringInferencer(one, device="cpu", cfg_options=options) for one in (model, exported))
    expected, found = ours(refshapes_images[0], PHRASES), theirs(refshapes_images[0], PHRASES)
    for one, other in zip(expected, found, strict=True):
        assert np.mean(one.mask != other.mask) < 0.001


def test_scores_are_those_of_the_original(model: Path, exported: Path, tmp_path: Path) -> None:
    scores, hashes = [], []
    for folder in (model, exported):
        file = tmp_path / f"{folder.name}.json"
        assert main(["test", str(folder), "--out", str(file), "--work-dir", str(tmp_path)]) == 0
        result = json.loads(file.read_text())
        scores.append(result["metrics"]["refseg/gIoU"])
        hashes.append(result["checkpoint"]["weights_sha256"])
    assert scores[0] == pytest.approx(scores[1], abs=0.1)
    assert hashes[0] != hashes[1]


@pytest.mark.usefixtures("no_tracing")
def test_a_model_that_differs_is_not_kept(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["export", str(model), "--out", str(tmp_path / "out"), "--samples", "1"]
    assert main([*argv, "--max-logit-difference", "-1"]) == 1
    assert "The exported model is not kept. ONNX: logits differ by up to" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    # Only the int8 model is dropped if only that fails
    exact = run.exceeded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "exceeded", lambda row, logits, iou: exact(row, logits, 2 if logits is None else iou))
        assert main([*argv, "--int8"]) == 1
    assert "The int8 model is not kept. ONNX int8: the masks' mean IoU is" in capsys.readouterr().err
    assert (tmp_path / "out/phrases.onnx").is_file() and not (tmp_path / "out/int8").exists()
    # A folder with content stays as it is
    assert main(argv) == 1
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (dict(max_logit_difference=0.01, min_iou=0.99, changed=0, phrases=9), ""),
        (dict(max_logit_difference=float("nan"), min_iou=1.0, changed=0, phrases=9), "B: logits differ by up to nan"),
        (dict(max_logit_difference=0.0, min_iou=0.5, changed=0, phrases=9), "B: a mask has an IoU of 0.500"),
        (dict(max_logit_difference=0.0, min_iou=1.0, changed=2, phrases=9), "B: 2 of 9 answers changed"),
    ],
)
def test_limits(row: dict, problem: str) -> None:
    """Every size of images counts: row A is fine."""
    fine = dict(max_logit_difference=0.0, min_iou=1.0, changed=0, phrases=9)
    found = run.exceeded({"A": fine, "B": row}, 0.01, 0.99)
    assert found.startswith(problem) and bool(found) == bool(problem)


def test_what_cannot_be_exported(
    model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = ["--out", str(tmp_path / "out")]
    clipseg = BUILDERS["clipseg"](tmp_path / "clipseg")
    assert main(["export", "clipseg", *out, "--cfg-options", f"model.pretrained={clipseg}"]) == 1
    assert "CLIPSeg cannot be exported: its processor of transformers" in capsys.readouterr().err
    assert main(["export", str(exported), *out]) == 1
    assert "is an exported model already" in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert main(["export", str(model), *out]) == 1
    assert "needs onnxscript. Install them: pip install 'refseg[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_of_an_exported_model(exported: Path, refshapes_images: list[str], tmp_path: Path) -> None:
    keeps = ReferringInferencer(exported, cfg_options={"test_dataloader.dataset.pipeline.1.mode": "keep"})
    with pytest.raises(ConfigError, match="images that fill its input"):
        keeps(np.zeros((40, 90, 3), np.uint8), "the circle")
    damaged = Path(shutil.copytree(exported, tmp_path / "damaged"))
    (damaged / "image.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"image\.onnx is not a graph that onnxruntime can run"):
        ReferringInferencer(damaged)
    (damaged / "phrases.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"has no phrases\.onnx"):
        ReferringInferencer(damaged)
