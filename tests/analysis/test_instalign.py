"""Words and POA of InstAlign, measured on a tiny untrained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from refseg.analysis.instalign import measure_instalign
from refseg.analysis.trained_model import TrainedModel
from refseg.engine.run import RunOptions, load_config
from refseg.errors import UsageError
from refseg.registry import DATASETS, MODELS


def trained(config: str, refshapes: Path) -> TrainedModel:
    cfg = load_config(config, RunOptions())
    dataset = cfg.test_dataloader.dataset
    dataset.annotations.file = str(refshapes / "refshapes.jsonl")
    dataset.pipeline[2].tokenizer.word_list = str(refshapes / "words.txt")
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("refseg"):
        model = MODELS.build(cfg.model).eval()
        return TrainedModel(cfg, model, DATASETS.build(dataset))


def test_measures_of_masks_that_are_right(refshapes_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every mask counts as matched, all matched instances are measured: "chance" is then the mean share of words
    that describe an instance, and POA lies between 0 and 2."""
    monkeypatch.setattr("refseg.analysis.instalign.MIN_IOU", -1.0)
    model = trained("instalign_tiny_refshapes", refshapes_tiny)
    numbers = measure_instalign(model)
    shares = []
    for index in range(len(model.dataset)):
        for expression in model.dataset[index].ground_truth.record.expressions:
            words = len(expression.text.split())
            shares += [len(described) / words for described in expression.tags["words"].values() if described]
    assert numbers["instances"] == len(shares)
    assert numbers["words"]["chance"]["pointing"] == pytest.approx(100 * sum(shares) / len(shares))
    blocks = {f"block {block}{head}" for block in range(3) for head in ("", *(f", head {h}" for h in range(4)))}
    assert set(numbers["words"]) == {"dot", "chance"} | blocks
    for values in numbers["poa"].values():
        assert 0 <= values["min"] <= values["median"] <= values["max"] <= 2


def test_other_models_are_refused(refshapes_tiny: Path) -> None:
    with pytest.raises(UsageError, match="is no InstAlign"):
        measure_instalign(trained("baseline_tiny_refshapes", refshapes_tiny))
