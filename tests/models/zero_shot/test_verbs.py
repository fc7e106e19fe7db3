"""Every verb works on every zero-shot model, with tiny random weights on RefShapes tiny."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distributed import free_port
from refseg.cli.main import main
from refseg.demo.limits import Limits
from refseg.demo.page import Page, Question
from refseg.engine.run import load_config
from refseg.evaluation.metrics import ReferringMetric
from refseg.evaluation.protocols import READ_BY
from refseg.inference.inferencer import ReferringInferencer
from refseg.known_models import KNOWN_MODELS
from refseg.models.postprocess import PostProcess
from refseg.paths import configs_dir
from tiny_models import MODELS

MODEL_FILES = {"sam3": "sam3", "sam3_lite_text": "sam3", "clipseg": "clipseg"}  # else grounded_sam2


@pytest.fixture(scope="module")
def configs(folders: dict[str, str], refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a config per model, on RefShapes tiny with a few images."""
    root = tmp_path_factory.mktemp("configs")
    lines = [json.loads(line) for line in (refshapes_tiny / "refshapes.jsonl").read_text().splitlines()]
    names = sorted({line["image"] for line in lines if line["split"] == "val"})[:3]
    data = refshapes_tiny / "few.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines if line["image"] in names or line["split"] == "train"))
    base = configs_dir() / "_base_"
    made = {}
    for name, (_, kinds) in MODELS.items():
        schedule = "adamw_cosine" if name == "clipseg" else "evaluation_only"
        bases = ["datasets/jsonl", f"models/{MODEL_FILES.get(name, 'grounded_sam2')}", f"schedules/{schedule}"]
        weights = {key.split(".")[1]: folders[kind] for key, kind in kinds.items()}
        loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
        dataset = dict(annotations=dict(file=str(data)))
        content = [
            f"_base_ = {[str(base / f'{one}.py') for one in [*bases, 'default_runtime']]}",
            f"model = dict(**{weights})",
            f"train_dataloader = dict(**{loader}, dataset=dict(**{dataset}))",
            f"val_dataloader = dict(**{loader}, dataset=dict(**{dataset}, split='val'))",
            "test_dataloader = dict(batch_size=2, num_workers=0, "
            f"dataset=dict(**{dataset}, split='val', no_target='keep'))",
            "env_cfg = dict(mp_cfg=dict(mp_start_method='fork'))",
            "visualizer = dict(_delete_=True, type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])",
        ]
        made[name] = root / f"{name}.py"
        made[name].write_text("\n".join(content))
    return made


@pytest.mark.parametrize("name", MODELS)
def test_scoring_verbs(configs: dict[str, Path], refshapes_tiny: Path, tmp_path: Path, name: str) -> None:
    predictions, data = tmp_path / "predictions.jsonl", f"{refshapes_tiny / 'few.jsonl'}:val"
    arguments = ["--work-dir", str(tmp_path), "--predictions", str(predictions), "--out", str(tmp_path / "scores.json")]
    assert main(["test", str(configs[name]), *arguments]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["merged"] == ("mask" if name == "clipseg" else "instances")
    assert main(["score", str(predictions), "--data", data, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    # The protocol resizes logits. The file has SAM 3's masks, which are resized as probabilities.
    allowed = 3.0 if "sam3" in name else 1e-3
    assert again["metrics"]["gIoU"] == pytest.approx(scores["metrics"]["refseg/gIoU"], abs=allowed)
    # The protocol's threshold of "nothing here" is 0.5. A model with another one gets a note.
    noted = any("Pass --no-target-threshold 0.65 to score its own answers" in note for note in again["notes"])
    assert noted == (name not in MODEL_FILES)
    calibration = str(tmp_path / "calibration.json")
    assert main(["calibrate", str(predictions), "--data", data, "--json", calibration]) == 0
    chosen = json.loads((tmp_path / "calibration.json").read_text())["chosen"]
    assert set(chosen) == {"no_target_threshold", *(() if name == "clipseg" else ("instance_threshold",))}
    assert main(["report", str(tmp_path), "--predictions", str(predictions), "--data", data, "--resamples", "2"]) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", MODELS)
def test_predict_label_and_probe(
    configs: dict[str, Path], refshapes_tiny: Path, refshapes_images: list[str], tmp_path: Path, name: str
) -> None:
    texts = ["--text", "the red circle", "two stars"]
    outputs = ["--out", str(tmp_path), "--format", "coco", "labelstudio", "masks", "--show", "--heat"]
    assert main(["predict", str(configs[name]), "--image", *refshapes_images[:2], *texts, *outputs]) == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if "text" in row] == ["the red circle", "two stars"] * 2
    labels = ["--images", *refshapes_images[:2], "--vocabulary", "a star", "--out", str(tmp_path / "labels.jsonl")]
    assert main(["label", str(configs[name]), *labels, "--confidence", "0", "--negative-confidence", "0"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a star"] * 2
    arguments = ["--data", f"{refshapes_tiny / 'few.jsonl'}:val", "--rules", "--images", "1", "--resamples", "2"]
    assert main(["probe", str(configs[name]), *arguments]) == 0


def test_training_verbs_of_a_model_that_is_not_trained(
    configs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not trained, `doctor` checks what evaluation needs, and `benchmark` times inference alone."""
    config = str(configs["grounding_dino"])
    assert main(["train", config]) == 1
    assert "is a config for evaluation only: it has no train_cfg. Use the model as it is" in capsys.readouterr().err
    assert main(["doctor", config]) == 0
    checked = capsys.readouterr().out
    assert "weights" in checked and "can run here." in checked and "train data" not in checked
    assert main(["doctor", "sam3", "--json"]) == 1
    (failed, *_) = json.loads(capsys.readouterr().out)["findings"]
    assert failed["name"] == "weights" and "hf download facebook/sam3" in failed["text"]
    assert main(["benchmark", config, "--shape", "64", "64", "--iters", "1", "--warmup", "0", "--json"]) == 0
    assert [row["what"] for row in json.loads(capsys.readouterr().out)] == ["inference"]
    for verb in ("flops", "benchmark"):
        assert main([verb, config]) == 1
        assert "has no Resize, so the input size is unknown. Pass --shape H W" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_web_page(configs: dict[str, Path], refshapes_images: list[str], name: str) -> None:
    page = Page(ReferringInferencer(configs[name]), Limits())
    asked = page.ask(Question(refshapes_images[0], "a.png", "the red circle\na star", 0.5))
    assert [phrase.text for phrase in asked.answer] == ["the red circle", "a star"]


def test_clipseg_trains_and_its_folder_moves(
    configs: dict[str, Path], folders: dict[str, str], refshapes_images: list[str], tmp_path: Path
) -> None:
    """Training changes the decoder alone. The work directory answers where CLIPSeg's own folder is missing."""
    own = tmp_path / "clipseg"
    shutil.copytree(folders["clipseg"], own)
    options = [f"model.pretrained={own}", "train_cfg.max_epochs=1", "train_cfg.val_interval=1", "param_scheduler=None"]
    work_dir = tmp_path / "run"
    assert main(["train", str(configs["clipseg"]), "--work-dir", str(work_dir), "--cfg-options", *options]) == 0
    before = ReferringInferencer("clipseg", cfg_options={"model.pretrained": folders["clipseg"]})
    shutil.rmtree(own)
    moved = tmp_path / "elsewhere"
    shutil.copytree(work_dir, moved)
    after = ReferringInferencer(moved)
    old, new = (dict(one.segmentor.named_parameters()) for one in (before, after))
    changed = {key.split(".")[1] for key in old if not old[key].equal(new[key])}
    assert changed == {"decoder"}
    (answer,) = after(refshapes_images[0], ["the red circle"])
    assert answer.raw_mask.shape == (96, 96)
    assert main(["test", str(moved)]) == 0


@pytest.mark.slow
def test_two_processes(configs: dict[str, Path], refshapes_tiny: Path, tmp_path: Path) -> None:
    """A model without trained parameters cannot be wrapped for several processes, and needs no wrapper."""
    file = tmp_path / "predictions.jsonl"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    run = ["-m", "refseg.cli", "test", str(configs["sam3"]), "--launcher", "pytorch", "--predictions", str(file)]
    subprocess.run([*launch, *run, "--work-dir", str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    assert main(["score", str(file), "--data", f"{refshapes_tiny / 'few.jsonl'}:val"]) == 0  # has all expressions


def test_shipped_configs_are_valid() -> None:
    """All keys are read, and the model resizes and tokenizes by itself."""
    for file in sorted((configs_dir() / "zero_shot").glob("*.py")):
        cfg = load_config(str(file))
        steps = cfg.test_dataloader.dataset.pipeline
        assert [step.type for step in steps] == ["LoadImage", "RawText", "PackSample"], file
        # `refseg test` rejects what `refseg predict` rejects. CLIPSeg's probability exceeds 0.5 if its mask is empty.
        settings = PostProcess(**cfg.model.get("postprocess", {}))
        answered = 1.0 if settings.no_target == "none" else settings.no_target_threshold
        evaluator = {key: value for key, value in cfg.test_evaluator.items() if key != "type"}
        thresholds = {
            protocol.no_target.threshold
            for protocol in ReferringMetric(**evaluator).protocols
            if protocol.no_target.rule in READ_BY["threshold"]
        }
        assert thresholds == {answered} or cfg.model.type == "CLIPSeg", file
    for known in KNOWN_MODELS.values():
        assert (configs_dir() / f"{known.config}.py").is_file()
