"""`refseg probe` with models that know the truth or ignore the text, and with a real one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from refseg.analysis.probes.measure import KINDS, METRICS, Outcome, Pair, iou_of, is_right, summarize
from refseg.analysis.probes.run import probe_data, probed_images
from refseg.cli import main
from refseg.datasets.masks import decode
from refseg.engine.run import RunOptions, build_model, load_config
from refseg.evaluation.scorer import open_data
from refseg.inference.loading import LoadedModel
from refseg.inference.loading import test_pipeline as pipeline_of
from refseg.models.postprocess import PostProcess


def rle(*columns: int) -> dict:
    pixels = np.zeros((4, 4), np.uint8, order="F")
    pixels[:, list(columns)] = 1
    return coco_mask.encode(pixels)


def test_is_right_and_iou_of() -> None:
    """An IoU of 1/2 is right, and 1/3 is not. The empty answer is right if the truth is empty."""
    assert is_right(rle(0), rle(0, 1)) and not is_right(rle(0), rle(0, 1, 2))
    assert is_right(rle(), rle()) and not is_right(rle(0), rle()) and not is_right(rle(), rle(0))
    assert iou_of(rle(0, 1), rle(1, 2)) == pytest.approx(1 / 3) and iou_of(rle(), rle()) == 1


def test_same_truth() -> None:
    """Truths with IoU 3/4 make a pair. Equal or empty truths do not. An unknown truth does."""
    pairs = {truth: Pair("color", "e", "a", "b", rle(0, 1, 2), rle(*truth)) for truth in ((0, 1, 2, 3), (0, 1, 2), ())}
    assert [pair.same_truth for pair in pairs.values()] == [False, True, False]
    assert Pair("color", "e", "a", "b", rle(), rle()).same_truth
    assert not Pair("color", "e", "a", "b", rle(0), None).same_truth


def outcome(kind: str, image: int, right: bool, changed: bool | None, iou: float) -> Outcome:
    return Outcome(Pair(kind, "e", "a", "b", rle(0), rle(1)), image, right, changed, iou)


def test_summarize() -> None:
    """Color: 2 of 3 right, 1 of 2 known changed right, 1 of 2 both right, 1 of 3 the same. Absent: nothing known."""
    found = [
        outcome("color", 0, True, True, 0.0),
        outcome("color", 0, True, None, 0.3),
        outcome("color", 1, False, False, 0.9),
        outcome("absent", 1, True, None, 1.0),
    ]
    color, absent, every = summarize(found, resamples=50)
    assert [color["kind"], absent["kind"], every["kind"]] == ["color", "absent", "all"]
    assert list(color["metrics"].values()) == pytest.approx([200 / 3, 50, 50, 100 / 3, 40])
    assert (color["pairs"], color["known"], absent["known"], every["pairs"]) == (3, 2, 0, 4)
    assert absent["metrics"]["changed right"] is None and "changed right" not in absent["intervals"]
    assert color["intervals"]["right"] == [0.0, 100.0], "two images, with 2 of 2 and 0 of 1"


class Fake:
    """Answers every phrase by `answer(image_id, text)`, an RLE, and counts its calls and images."""

    def __init__(self, answer) -> None:
        self.answer, self.calls, self.images = answer, 0, 0
        self.postprocess = PostProcess()

    def test_step(self, data: dict) -> list[SimpleNamespace]:
        self.calls += 1
        metas = data["batch"].metas
        self.images += len(metas)
        return [
            SimpleNamespace(
                meta=meta,
                mask_logits=None,
                no_target_prob=None,
                final_masks=lambda meta=meta: torch.from_numpy(
                    np.stack([decode(self.answer(meta.image_id, text)) for text in meta.texts])
                ),
            )
            for meta in metas
        ]


def test_perfect_and_constant_models(tiny_config: Path, refshapes_tiny: Path) -> None:
    """A model that knows the truth is always right. One that answers with the whole image never changes its answer.

    Seven images in batches of four take two passes, whatever the number of phrases.
    """
    data = open_data(f"{refshapes_tiny / 'refshapes.jsonl'}:val")
    cfg = load_config(str(tiny_config), RunOptions())
    pipeline = pipeline_of(cfg)
    cfg.test_dataloader.dataset.pipeline = []  # unused: the loaded model has its own pipeline

    def loaded(model: Any) -> LoadedModel:
        return LoadedModel(model, pipeline, cfg, tiny_config, tiny_config)

    truths = {}
    for image in probed_images(data, kinds=KINDS):
        for pair in image.pairs:
            truths[image.record.image_id, pair.text] = pair.truth
            truths[image.record.image_id, pair.changed] = pair.changed_truth
    oracle = Fake(lambda image, text: truths[image, text])
    found = probe_data(loaded(oracle), data, resamples=20)
    assert found["by"] == "meaning" and found["images"] == 7 and (oracle.calls, oracle.images) == (2, 7)
    kinds = [kind for kind in KINDS if kind != "above-below"]  # which seven images need not have
    assert [line["kind"] for line in found["probes"]] == [*kinds, "all"]
    for line in found["probes"]:
        assert [line["metrics"][name] for name in METRICS[:4]] == [100, 100, 100, 0]
    everything = coco_mask.encode(np.ones((96, 96), np.uint8, order="F"))
    deaf = probe_data(loaded(Fake(lambda *_: everything)), data, kinds=["color"], most_images=2, resamples=20)
    assert deaf["images"] == 2 and [line["kind"] for line in deaf["probes"]] == ["color", "all"]
    assert deaf["probes"][0]["metrics"]["same answer"] == 100 and deaf["probes"][0]["metrics"]["both right"] == 0
    by_rule = probe_data(loaded(Fake(lambda *_: everything)), data, use_rules=True, resamples=20)
    assert by_rule["by"] == "rules on words" and by_rule["probes"][-1]["known"] < by_rule["probes"][-1]["pairs"]


def test_command_and_report(
    tiny_config: Path, refshapes_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(load_config(str(tiny_config), RunOptions()))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    data, out = f"{refshapes_tiny / 'refshapes.jsonl'}:val", tmp_path / "probes.json"
    call = ["probe", str(tiny_config), str(tmp_path / "w.pth"), "--data", data]
    assert main([*call, "--images", "3", "--json", str(out), "--resamples", "20"]) == 0
    assert "3 images, by meaning" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["checkpoint"]["sha256"] and found["data"]["split"] == ["val"] and len(found["pairs"]) > 10
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "c.py").write_text("a = 1\n")
    assert main(["report", str(tmp_path / "work"), "--probes", str(out)]) == 0
    html = (tmp_path / "work" / "report.html").read_text()
    assert "Probes</h2>" in html and "negation" in html and "pairs with the same answer" in html
    capsys.readouterr()
    out.write_text(json.dumps(found | {"probes": [{"kind": "x"}]}))
    assert main(["report", str(tmp_path / "work"), "--probes", str(out)]) == 1
    assert "is not a file of `refseg probe --json`" in capsys.readouterr().err
    layout = [*call[:-1], f"{refshapes_tiny / 'refcoco'}:val", "--images", "1", "--resamples", "20"]
    assert main(layout) == 0 and "1 images, by rules" in capsys.readouterr().out, "images of a layout lie beside it"
    assert main([*call, "--kinds", "shade"]) == 1 and "unknown kind 'shade'" in capsys.readouterr().err
    assert main([*call[:2], str(tmp_path / "no.pth"), *call[3:]]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert main([call[0], str(tmp_path / "work"), *call[3:]]) == 1 and "no checkpoint in" in capsys.readouterr().err
