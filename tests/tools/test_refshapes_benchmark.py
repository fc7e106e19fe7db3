"""The RefShapes benchmark: its configs, the choice of what is left to do, and its page."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import REPOSITORY, load_script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/benchmark/refshapes.py")


def scores(gain: int) -> dict[str, Any]:
    """Return the scores of 12 phrases on 2 images."""
    iou = [min(1000, 50 * i + gain) for i in range(12)]
    groups = {"skill": "size", "length": "[1, 3) words", "tag:objects": "6 or 7"}
    value = sum(iou) / 120
    by = {group: [{group: label, "expressions": 12, "gIoU": value}] for group, label in groups.items()}
    metrics = {"gIoU": value, "cIoU": 40.0, "mIoU": 50.0, "N-acc": 30.0, "T-acc": 97.0}
    return {"metrics": metrics, "by": by, "iou": iou, "seconds": 3.0}


def run(method: str, seed: int, gain: int, **changes: Any) -> dict[str, Any]:
    row = dict(kind="run", method=method, seed=seed, rate=1.0, steps=300, budget="43,200 phrases", hash="a")
    row |= dict(phrases=43200, seconds=100.0, gpu=False, params=1.5e6, macs=50e6, curve=[[150, 10.0], [300, 20.0]])
    row |= dict(
        machine="a CPU", torch="2", revision="abc", scores=dict.fromkeys(("val", "test", "new words"), scores(gain))
    )
    return row | changes


def test_methods_train_alike(tool: ModuleType, refshapes_tiny: Path) -> None:
    """All methods get the same data, schedule, and encoders; VIPA's Swin ends at stride 16."""
    configs = {}
    for name in ("InstAlign", "LAVT", "VIPA", "Latent-VG"):
        configs[name] = tool.make_config(tool.Job("run", name, 3, 2.0, 40, ""), refshapes_tiny)
    for name, cfg in configs.items():
        data = cfg.train_dataloader.dataset
        assert (data.no_target, cfg.train_dataloader.batch_size, cfg.randomness.seed) == ("keep", 8, 3), name
        assert cfg.optim_wrapper.optimizer.type == "MuonAdamW" and cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-3)
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 6, name
        assert Path(data.annotations.file).parent == refshapes_tiny
    assert configs["InstAlign"].model.encoder.vision == configs["LAVT"].model.encoder.vision
    assert configs["VIPA"].model.encoder.vision.arch.depths == (2, 2, 2)
    assert configs["InstAlign"].train_dataloader.dataset.expressions_per_image == 18


def test_identity_of_a_training(tool: ModuleType, refshapes_tiny: Path) -> None:
    """The hash leaves out the seed, and changes with the learning rate and the length."""
    jobs = [
        tool.Job("run", "LAVT", seed, rate, steps, "")
        for seed, rate, steps in ((0, 1, 9), (1, 1, 9), (0, 2, 9), (0, 1, 8))
    ]
    first, same, *others = (tool.identity(tool.make_config(job, refshapes_tiny)) for job in jobs)
    assert first == same and len({first, *others}) == 3


def test_finished_jobs_are_skipped(tool: ModuleType, refshapes_tiny: Path, tmp_path: Path) -> None:
    results = tool.Results(tmp_path / "results.jsonl")
    job = tool.Job("run", "LAVT", 0, 1.0, 9, "9 steps")
    digest = tool.identity(tool.make_config(job, refshapes_tiny))
    results.add({"kind": "run", "method": "LAVT", "seed": 0, "steps": 9, "hash": digest})
    args = Namespace(data=refshapes_tiny, out=tmp_path, jobs=1)
    tool.do_jobs([job], tool.Results(tmp_path / "results.jsonl"), args)  # would start a process, and fail
    assert not list(tmp_path.glob("run_*"))


def test_page(tool: ModuleType, tmp_path: Path) -> None:
    results = tool.Results(tmp_path / "results.jsonl")
    for seed in (0, 1):
        results.add(run("InstAlign", seed, 200))
        results.add(run("InstAlign without instances", seed, 100))
    results.add(run("LAVT", 0, 0))
    results.add(run("LAVT", 0, 500, hash="b"))  # of a newer config
    results.add(dict(kind="sweep", method="LAVT", rate=2.0, budget="43,200 phrases", curve=[[100, 12.5]]))
    args = Namespace(page=tmp_path / "results/refshapes.md", results=tmp_path / "results.jsonl")
    tool.write_page(results, args)
    page = args.page.read_text()
    mean = sum(scores(200)["iou"]) / 120
    assert f"| InstAlign | 2 | {mean:.1f} ({mean:.1f}-{mean:.1f}) | 40.0" in page
    assert f"| LAVT | 1 | {sum(scores(500)['iou']) / 120:.1f} |" in page
    assert "| InstAlign - InstAlign without instances | 10.0 (10.0-10.0) | +10.0 (0.5" in page
    assert "| LAVT | 12.5 |" in page and "- 6 trainings on a CPU" in page
    assert (tmp_path / "images/refshapes_phrases_43200.svg").read_text().count("<title>") == 4

    # Findings that people wrote stay
    args.page.write_text(page.replace("<!-- findings -->\n", "<!-- findings -->\nLAVT is fast.\n"))
    tool.write_page(tool.Results(args.results), args)
    assert "LAVT is fast." in args.page.read_text()
    assert json.loads(args.results.read_text().splitlines()[0])["method"] == "InstAlign"


def test_references_are_of_the_test_split(tool: ModuleType, refshapes_tiny: Path, tmp_path: Path) -> None:
    """All shapes of an image are worth more than nothing, and less than knowing all attributes."""
    results = tool.Results(tmp_path / "results.jsonl")
    sys.path.insert(0, str(REPOSITORY / "tools" / "benchmark"))
    try:
        tool.add_references(results, refshapes_tiny)
    finally:
        sys.path.pop(0)
    worth = {row["method"].split(":")[0]: row["gIoU"] for row in results.rows}
    assert worth.keys() == {"text-blind", "image-blind", "bag of words, knows all attributes"}
    assert 0 < worth["text-blind"] < worth["bag of words, knows all attributes"] < 100
