"""`refseg flops` and `refseg benchmark`."""

import json

import pytest
import torch
from torch import nn

from refseg.analysis.benchmark import benchmark, compare_inference, share_of_changes
from refseg.analysis.flops import count, table
from refseg.cli import main
from refseg.engine.run import load_config
from refseg.models import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction

CONFIG = "baseline_tiny_refshapes"


@MODELS.register_module(force=True)
class CountedStub(RefSegmentor):
    """A 3x3 convolution from 3 to 4 channels, and attention of 5 queries to 7 keys with 2 heads of 4 channels."""

    def __init__(self) -> None:
        super().__init__(data_preprocessor=dict(type="ReferringDataPreprocessor", size_divisor=1))
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=False)

    def infer(self, batch: Batch) -> Prediction:
        query, keys = torch.ones(1, 5, 8), torch.ones(1, 7, 8)
        extra = self.attention(query, keys, keys, need_weights=False)[0].relu().mean()
        return Prediction(self.conv(batch.images)[:, 0] + extra)


def test_macs_by_hand() -> None:
    """Convolution: 10 x 6 pixels x 4 x 27 = 6480. Attention: q 5 x 8 x 8 = 320, k and v 2 x 7 x 64 = 896, scores and
    sums 2 x 2 heads x 5 x 7 x 4 = 560, output 320. In evaluation mode torch would take a fused kernel for it."""
    cfg = load_config(CONFIG)
    cfg.model = dict(type="CountedStub")
    result = count(cfg, shape=(10, 6))
    assert result["macs"] == 6480 + 320 + 896 + 560 + 320
    assert result["flops"] == 2 * result["macs"]
    assert result["params"] == 4 * 27 + 4 * 64
    assert result["modules"]["conv"] == {"params": 108, "macs": 6480}
    assert result["not_counted_elements"]["relu"] == 40
    assert "conv" in table(result)


def test_the_command_prints_json(capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", CONFIG, "--shape", "64", "64", "--words", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"params", "macs", "flops"} <= set(result) and result["input"] == {
        "shape": [64, 64],
        "words": 5,
        "expressions": 1,
    }


def test_options_and_length_of_the_config(capsys: pytest.CaptureFixture) -> None:
    """Two layers of words are added to the model, and a tokenizer that allows 7 tokens gives 7 tokens."""
    totals = []
    for options in (
        [],
        ["--cfg-options", "model.word_layers=2", "test_dataloader.dataset.pipeline.2.tokenizer.max_words=7"],
    ):
        assert main(["flops", "vipa_tiny_refshapes", "--json", *options]) == 0
        totals.append(json.loads(capsys.readouterr().out))
    assert [total["input"]["words"] for total in totals] == [24, 7]
    layer = 4 * 96 * 97 + 4 * 96 * 97 + 4 * 96 * 96 + 96 + 4 * 96  # attention, MLP, norms
    assert totals[1]["params"] - totals[0]["params"] == 2 * layer


def test_ways_of_inference_side_by_side() -> None:
    """On a CPU there are four. The memory format changes hardly a pixel, and all latencies are relative to fp32."""
    rows = compare_inference(load_config(CONFIG), shape=(32, 32), iters=2, warmup=1, device="cpu")
    assert [row["way"] for row in rows] == ["fp32", "fp32, channels last", "bf16", "bf16, channels last"]
    assert (rows[0]["speedup"], rows[0]["changed_pixels"]) == (1, 0) and rows[1]["changed_pixels"] < 1
    masks = torch.tensor([[True, False], [False, False]])
    assert share_of_changes([masks, masks], [masks, ~masks]) == 0.5 and share_of_changes([masks], [masks]) == 0


def test_benchmark_rows() -> None:
    rows = benchmark(load_config(CONFIG), shape=(32, 32), batch_size=2, expressions=3, iters=2, warmup=1)
    assert [row["what"] for row in rows] == ["inference", "training"]
    for row in rows:
        assert row["expressions_per_s"] == pytest.approx(3 * row["images_per_s"])
        low, high = row["latency_ms_min_max"]
        assert 0 < low <= row["latency_ms"] <= high and row["peak_memory_mib"] > 0
