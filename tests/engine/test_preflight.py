"""Checks of a config before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refseg.datasets.tokenizers import word_list_tokenizer
from refseg.engine.preflight import estimate_memory, preflight, require_preflight
from refseg.engine.run import RunOptions, load_config
from refseg.errors import ConfigError
from refseg.terminal import FAIL, OK

CONFIG = "instalign_swinb"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Save a small BERT as transformers does, and return its folder."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    word_list_tokenizer(["red", "left", "cup", "dog"]).save_pretrained(folder)
    return folder


def test_all_missing_files_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    cfg = load_config(CONFIG)
    findings = {one.name: one for one in preflight(cfg)}
    failed = {name for name, one in findings.items() if one.status == FAIL}
    assert failed == {"tokenizer", "vision weights", "train data"}, "text weights miss the same folder as the tokenizer"
    with pytest.raises(ConfigError, match=r"(?s)cannot be trained here.*tokenizer: .*vision weights: .*train data: "):
        require_preflight(cfg)


def test_trainable_config(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = load_config(str(tiny_config))
    assert all(one.status == OK for one in preflight(cfg))
    require_preflight(cfg)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("preflight ok")


def test_missing_images(tiny_config: Path, tmp_path: Path) -> None:
    cfg = load_config(str(tiny_config), RunOptions(cfg_options={"train_dataloader.dataset.image_root": str(tmp_path)}))
    (found,) = [one for one in preflight(cfg) if one.status == FAIL]
    assert (
        found.name == "train data" and f"16 of 16 sampled images of split 'train' are not in {tmp_path}" in found.text
    )


def test_missing_split(tiny_config: Path) -> None:
    cfg = load_config(str(tiny_config), RunOptions(cfg_options={"val_dataloader.dataset.split": "minival"}))
    (found,) = [one for one in preflight(cfg) if one.status == FAIL]
    assert found.name == "val data" and "no expression has split 'minival'" in found.text


def test_memory_estimate_of_the_calibrated_case() -> None:
    """InstAlign with Swin-B at 480 and batch 8 in fp32 needs 19 GB. About 218 M x 4 bytes of them are weights."""
    parts = estimate_memory(load_config(CONFIG), 8)
    assert parts is not None
    assert sum(parts.values()) * 2**30 / 1e9 == pytest.approx(19, abs=1)
    assert parts["weights"] * 2**30 / 4e6 == pytest.approx(218, abs=20)
    assert estimate_memory(load_config(CONFIG), 4)["activations"] == pytest.approx(parts["activations"] / 2)
    for other in ("baseline_tiny_refshapes", "deris_beit3b"):
        assert estimate_memory(load_config(other), 8) is None


def test_one_option_changes_the_text_model_and_its_tokenizers(bert: Path) -> None:
    option = {"model.encoder.text.pretrained": str(bert)}
    cfg = load_config(CONFIG, RunOptions(cfg_options=option))
    tokenizers = [cfg[f"{one}_dataloader"].dataset.pipeline[2].tokenizer.pretrained for one in ("train", "val", "test")]
    assert tokenizers == [str(bert)] * 3
    findings = {one.name: one for one in preflight(cfg)}
    assert findings["text weights"].status == findings["tokenizer"].status == OK
    option["model.encoder.text.config.hidden_size"] = 64
    findings = {one.name: one for one in preflight(load_config(CONFIG, RunOptions(cfg_options=option)))}
    wrong = findings["text weights"]
    assert wrong.status == FAIL and "has hidden_size 32; the text encoder's config says 64" in wrong.text


def test_weights_in_the_data_folder_are_found(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    bert.rename(tmp_path / "weights" / "bert-base-uncased")
    findings = {one.name: one for one in preflight(load_config(CONFIG))}
    assert findings["tokenizer"].status == OK and "8 tokens" in findings["tokenizer"].text


def test_text_model_of_another_architecture(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=8, dim=32, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
        tmp_path
    )
    cfg = load_config(CONFIG, RunOptions(cfg_options={"model.encoder.text.pretrained": str(tmp_path)}))
    (found,) = [one for one in preflight(cfg) if one.name == "text weights"]
    assert found.status == FAIL and "config.model_type=distilbert" in found.text
