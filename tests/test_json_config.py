"""`config.json` is data: nothing that it names is imported, run, fetched, or written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from refseg.engine.run import load_config, read_config
from refseg.errors import ConfigError
from refseg.inference.inferencer import ReferringInferencer
from refseg.json_config import CONFIG, is_registered, portable, read_json_config, write_json_config

NAMES = ["baseline_tiny_refshapes", "instalign_swinb", "vipa_swinb_mixed", "rela_swinb", "latentvg_beit3b",
         "instalign/encoders/resnet50_grefcoco"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json_config(load_config("instalign_tiny_refshapes"), tmp_path / CONFIG)
    return tmp_path


def change(folder: Path, key: str, value: Any) -> None:
    """Set a nested key of the config."""
    content = json.loads((folder / CONFIG).read_text())
    inner = content
    *parents, last = key.split(".")
    for name in parents:
        inner = inner[int(name)] if isinstance(inner, list) else inner.setdefault(name, {})
    inner[last] = value
    (folder / CONFIG).write_text(json.dumps(content))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """A written config can be read again, and passes the config check. Only the types of sequences change."""
    cfg = load_config(name)
    write_json_config(cfg, tmp_path / CONFIG)
    again = load_config(str(tmp_path / CONFIG))
    for key in ("model", "train_dataloader", "test_dataloader", "test_evaluator", "optim_wrapper", "train_cfg"):
        assert json.dumps(again[key], sort_keys=True) == json.dumps(cfg[key], sort_keys=True), key
    assert again.default_hooks.checkpoint.get("by_epoch", True) == cfg.default_hooks.checkpoint.get("by_epoch", True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("custom_imports", {"imports": ["evil"]}, "custom_imports: not a part of a model"),
        ("_base_", "evil.py", "_base_: not a part of a model"),
        ("default_hooks", {"logger": {"out_dir": "x"}}, "default_hooks: not a part of a model"),
        ("visualizer", {"type": "Visualizer"}, "visualizer: not a part of a model"),
        ("model.type", "os.system", "model.type: nothing is registered as 'os.system'"),
        ("model.type", "evil", "model.type: nothing is registered as 'evil'"),
        ("model.type", "mmdet.evil", "model.type: nothing is registered as 'mmdet.evil'"),
        ("model.type", "mmseg.os.system", "nothing is registered as 'mmseg.os.system'"),
        ("model.type", "evil.InstAlign", "nothing is registered as 'evil.InstAlign'"),
        ("model.encoder.vision", {"type": "os.system", "command": "touch x"}, "model.encoder.vision.type: nothing"),
        ("model._scope_", "evil", "model._scope_: unknown scope 'evil'"),
        ("default_scope", "evil", "default_scope: must be 'refseg'"),
        ("test_dataloader.dataset.pipeline.0.type", "evil", r"pipeline\[0\]\.type: nothing is registered"),
        ("test_dataloader.collate_fn.type", "subprocess.run", "collate_fn.type: nothing is registered"),
        ("optim_wrapper.constructor", "evil", "optim_wrapper.constructor: nothing is registered as 'evil'"),
        ("test_evaluator.type", "DumpPredictions", "test_evaluator: must be one ReferringMetric"),
        ("test_evaluator.rows_file", "rows.jsonl", "test_evaluator.rows_file: not allowed here"),
        ("model.encoder.text.config.auto_map", {"AutoModel": "x--y.Z"}, "auto_map: this key loads code"),
        ("model.encoder.text.config.attn_implementation", "user/kernel", "attn_implementation: this key loads code"),
        ("model.encoder.text.pretrained", "/etc", "is a path or an address outside"),
        ("model.encoder.text.pretrained", "~/x", "is a path or an address outside"),
        ("model.encoder.text.pretrained", "data/../../x", "is a path or an address outside"),
        ("model.encoder.vision.name", "hf-hub:user/model", "is a path or an address outside"),
        ("model.init_cfg", {"type": "Pretrained", "checkpoint": "https://x/y.pth"}, "checkpoint: 'https:"),
        ("test_dataloader.dataset.annotations.file", "C:\\x.jsonl", "is a path or an address outside"),
        ("model.encoder.vision", {"type": "mmseg.TIMMBackbone", "pretrained": True}, "pretrained: downloads weights"),
    ],
)
def test_malicious_files(folder: Path, key: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `evil` is in reach. It would be imported if any part of it were looked up by mmengine."""
    (folder / "evil.py").write_text("raise SystemExit('evil was imported')")
    (folder / "model.safetensors").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    change(folder, key, value)
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match=message):
        ReferringInferencer(folder, device="cpu")
    assert sorted(folder.iterdir()) == before and not {"evil", "evil.registry"} & set(sys.modules)


def test_other_files(folder: Path, tmp_path: Path) -> None:
    (folder / CONFIG).write_text('{"model_type": "bert", "model": {}}')
    with pytest.raises(ConfigError, match="is not the config of a refseg model"):
        read_json_config(folder / CONFIG)
    (folder / CONFIG).write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_config(folder / CONFIG)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    cfg = load_config("instalign_tiny_refshapes")
    cfg.model.type = "MyModel"
    with pytest.raises(ConfigError, match=r"cannot be published as a config.json.*\n  model.type: nothing.*'MyModel'"):
        write_json_config(cfg, tmp_path / CONFIG)
    cfg.model = {"type": Config}
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        write_json_config(cfg, tmp_path / CONFIG)
    assert not list(tmp_path.iterdir())


def test_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "sets"))
    paths = {"a": (str(tmp_path / "sets/own/a.jsonl"), str(tmp_path / "b.txt")), "c": ["../c.txt", "data/d", "the dog"]}
    assert portable(paths) == {"a": ["data/own/a.jsonl", "b.txt"], "c": ["c.txt", "data/d", "the dog"]}


def test_registered_names() -> None:
    for name in ("InstAlign", "refseg.TextEncoder", "mmdet.FPN", "mmengine.BaseDataPreprocessor", "EpochSampler"):
        assert is_registered(name), name
    for name in ("os", "json.JSONDecoder", "torch.load", "mmdet.Nothing", "mmdet.InstAlign", "", None, 3):
        assert not is_registered(name), name
