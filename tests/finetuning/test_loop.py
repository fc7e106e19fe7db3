"""The whole loop of `docs/finetune.md`: import -> finetune -> serve -> correct -> import -> finetune."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="FastAPI is not installed (the extra demo)")
pytest.importorskip("peft", reason="peft is not installed (the extra lora)")

from starlette.testclient import TestClient

from refseg.cli.main import main
from refseg.data_tools.label_studio import SETUP
from refseg.datasets.masks import decode
from refseg.demo.api import Service, build
from refseg.demo.label_studio import ImageSources
from refseg.demo.limits import Limits
from refseg.engine.checkpoint import best_checkpoint, latest_checkpoint
from refseg.finetuning.run import CONFIG
from refseg.inference.exports import encode_brush
from refseg.inference.inferencer import ReferringInferencer
from refseg.weights import read_checkpoint


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_import_finetune_serve_correct_import_finetune(
    own: Path, finetuned: Path, refshapes_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`own` is imported from COCO, and `finetuned` is the model that was trained on it.

    The second fine-tuning starts from the first one with LoRA in the text encoder.
    """
    # Serve: Label Studio asks for an image that the model has not seen
    image = max((refshapes_tiny / "images").glob("*.png"))
    assert image.name not in own.read_text()
    options = {"instance_threshold": 0.0, "no_target": "none"}  # masks, however bad the model is
    inferencer = ReferringInferencer(finetuned, device="cpu", postprocess=options)
    client = TestClient(build(Service(inferencer, Limits(), ImageSources([image.parent]))))
    data = {"image": f"/data/upload/{image.name}", "phrases": "a square\nthe red circle"}
    body = {"tasks": [{"id": 1, "data": data}], "label_config": SETUP}
    (prediction,) = client.post("/predict", json=body).json()["results"]
    regions = [one for one in prediction["result"] if one["type"] == "brushlabels"]
    texts = {one["id"]: one for one in prediction["result"] if one["type"] == "textarea"}
    assert {text["value"]["text"][0] for text in texts.values()} == {"a square", "the red circle"}

    # Correct: a person draws one mask again, changes its phrase, deletes the others, and adds an absent object
    mask = np.zeros((96, 96), bool)
    mask[10:30, 20:50] = True
    region, text = regions[0], texts[regions[0]["id"]]
    region["value"]["rle"] = encode_brush(mask)
    text["value"]["text"] = ["the large green square"]
    absent = {"from_name": "negative_phrases", "type": "textarea", "value": {"text": ["a dragon"]}}
    export = tmp_path / "export.json"
    submitted = [{"id": 1, "data": data, "annotations": [{"result": [region, text, absent]}]}]
    export.write_text(json.dumps(submitted))

    # Import the correction, add it to the data, and check them
    corrected, merged = tmp_path / "corrected.jsonl", tmp_path / "merged.jsonl"
    command = ["data", "import", str(export), "--format", "label-studio", "--images", str(image.parent)]
    assert main([*command, "--out", str(corrected)]) == 0
    rows = {row["text"]: row for row in map(json.loads, corrected.read_text().splitlines())}
    assert rows.keys() == {"the large green square", "a dragon"} and not rows["a dragon"]["targets"]
    (target,) = rows["the large green square"]["targets"]
    assert np.array_equal(decode(target), mask)
    assert main(["data", "merge", str(own), str(corrected), "--out", str(merged)]) == 0
    assert len(merged.read_text().splitlines()) == len(own.read_text().splitlines()) + 2
    capsys.readouterr()
    assert main(["data", "check", str(merged)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" OK")

    # Fine-tune again, from the first model
    out = tmp_path / "second"
    command = ["finetune", str(merged), "--from", str(finetuned), "--lora", "text", "--steps", "2", "--out", str(out)]
    assert main(command) == 0
    assert "million parameters are trained" in capsys.readouterr().out
    assert "lora=dict(alpha=16, rank=8)" in (out / CONFIG).read_text()
    before = read_checkpoint(best_checkpoint(finetuned))["state_dict"]
    last = read_checkpoint(latest_checkpoint(out))
    adapters = last["adapters"]
    for name, value in adapters.items():
        if "base_layer" in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    assert last["state_dict"].keys() == before.keys()
    assert any(value.any() for name, value in adapters.items() if "lora_B" in name)
    (answer,) = ReferringInferencer(out)(str(image), ["the large green square"])
    assert answer.raw_mask.shape == mask.shape
