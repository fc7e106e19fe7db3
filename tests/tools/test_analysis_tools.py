"""Tools that compare runs, and tools that measure a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conftest import load_script
from refseg.engine.run import RunOptions, build_model, load_config
from refseg.errors import UsageError


def tool(name: str) -> ModuleType:
    return load_script(f"tools/analysis_tools/{name}.py")


def scores(oiou: float, of_size: float, data: str = "val") -> dict:
    groups = [{"skill": "size", "expressions": 3, "oIoU": of_size}, {"skill": "group", "expressions": 1, "oIoU": None}]
    return {"protocol": "refseg", "data": data, "metrics": {"oIoU": oiou}, "by": {"skill": groups}}


def test_score_tables() -> None:
    """Two seeds each: 40 and 44 are 42 on average. The other run is 2 lower and 1 higher."""
    compare = tool("compare_runs")
    runs = {"ours": [scores(40, 10), scores(44, 20)], "other": [scores(38, 5), scores(45, 5)]}
    assert compare.score_table(runs, ["oIoU"])[2:] == [
        "| ours | 2 | 42.0 (40.0-44.0) |  |",
        "| other | 2 | 41.5 (38.0-45.0) | -2.0, +1.0 |",
    ]
    assert compare.group_table(runs, "skill", "oIoU") == [
        "| oIoU | size | group |",
        "|---|---|---|",
        "| ours | 15.0 | - |",
        "| other | 5.0 | - |",
    ]


def test_scores_of_other_data_are_refused() -> None:
    compare = tool("compare_runs")
    with pytest.raises(UsageError, match="several protocols or data sets"):
        compare.check_comparable({"a": [scores(1, 1)], "b": [scores(1, 1, data="test")]})


def test_curves_of_work_directories(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "20260101" / "vis_data"
    folder.mkdir(parents=True)
    rows = [{"lr": 0.1, "loss": 1.0, "iter": 5, "step": 5, "epoch": 1}, {"refseg/oIoU": 30.0, "step": 1}]
    (folder / "scalars.json").write_text("\n".join(json.dumps(row) for row in rows))
    compare = tool("compare_runs")
    (curve,) = compare.curves_of("run", [tmp_path / "run"], "refseg/oIoU")
    assert curve.values == (30.0,)
    with pytest.raises(UsageError, match=r"--curve: .* has logged no gres/gIoU"):
        compare.curves_of("run", [tmp_path / "run"], "gres/gIoU")


def run_with_random_weights(name: str, config: str, refshapes_tiny: Path, tmp_path: Path, monkeypatch: Any) -> dict:
    """Run the whole command on 7 images, and return the content of its JSON file."""
    options = {
        "test_dataloader.dataset.annotations.file": str(refshapes_tiny / "refshapes.jsonl"),
        "test_dataloader.dataset.pipeline.2.tokenizer.word_list": str(refshapes_tiny / "words.txt"),
    }
    cfg = load_config(config, RunOptions(cfg_options=options))
    torch.save({"state_dict": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    for key in ("launcher", "work_dir"):
        cfg.pop(key)
    cfg.dump(tmp_path / "config.py")
    arguments = [str(tmp_path / "config.py"), str(tmp_path / "model.pth"), "--split", "val"]
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments, "--json", str(tmp_path / "out.json")])
    tool(name).main()
    return json.loads((tmp_path / "out.json").read_text())


def test_attention_entropy(refshapes_tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Three stages and their mean are printed and written."""
    rows = run_with_random_weights("attention_entropy", "vipa_tiny_refshapes", refshapes_tiny, tmp_path, monkeypatch)
    assert list(rows) == ["stage 3", "stage 2", "stage 1", "mean"]
    for row in rows.values():
        assert 0 < row["over_tokens"] <= 1 and 0 < row["over_pixels"] <= 1
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_retrieved_regions(refshapes_tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """11 of 36 places are retrieved. In an untrained model, tau has its initial value."""
    found = run_with_random_weights("retrieved_regions", "vipa_tiny_refshapes", refshapes_tiny, tmp_path, monkeypatch)
    shares, geometry = ("by_first", "by_words", "alike"), ("rank", "cue_cosine", "token_cosine")
    assert set(found) == {*shares, "chance", *geometry, "mask_gradient", "tau"}
    assert found["chance"] == pytest.approx(11 / 36) and found["tau"] == pytest.approx(1)
    assert all(0 < found[name] < 1 for name in shares)
    assert found["rank"] >= 1 and found["mask_gradient"] > 0
    assert -1 <= found["cue_cosine"] <= 1 and -1 <= found["token_cosine"] <= 1
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_latent_expressions(refshapes_tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """In an untrained model, a subject is a noun by chance: about one of the words is a noun."""
    found = run_with_random_weights(
        "latent_expressions", "latentvg_tiny_refshapes", refshapes_tiny, tmp_path, monkeypatch
    )
    names = ["among", "to_text", "across", "overlap", "updates", "confidence", "uniform", "subject", "chance"]
    assert list(found) == names
    assert all(-1 <= found[name] <= 1 for name in ("among", "to_text", "across"))
    assert all(0 <= found[name] <= 1 for name in ("overlap", "subject")) and found["updates"] < 0.95
    assert 0.1 < found["chance"] < 0.6 and 0.1 < found["uniform"] < found["confidence"] < 1
    assert len(capsys.readouterr().out.splitlines()) == len(names)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("attention_entropy", "baseline_tiny_refshapes", "config.py is a QueryBaseline: only the decoder of VIPA"),
        ("retrieved_regions", "vipa/ablations/refshapes_vanilla_language", "config.py is not a VIPA with retrieval"),
        ("latent_expressions", "latentvg/ablations/refshapes_baseline", "config.py has no latent expressions"),
    ],
)
def test_unsuitable_models_are_refused(
    name: str, config: str, message: str, refshapes_tiny: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_with_random_weights(name, config, refshapes_tiny, tmp_path, monkeypatch)
