"""`refseg convert`: files of each layout become files that encoders, `load_from` and models take."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import refseg.convert.files as files
from models.encoders import test_beit3_weights as beit3
from models.encoders import test_swin_weights as swin
from models.referring_checks import tiny_model
from models.test_lavt_weights import official_content as lavt_content
from models.test_rela_weights import official_model as rela_content
from refseg.cli.main import main
from refseg.engine.run import load_config
from refseg.errors import CheckpointError
from refseg.files import sha256_of
from refseg.models.encoders.beit3_weights import load_official_beit3
from refseg.models.encoders.swin import SwinEncoder
from refseg.models.encoders.swin_weights import load_official_swin, swin_state_from_official
from refseg.models.published import Sizes, find_layout, state_for
from refseg.weights import load_initial, load_weights


@pytest.fixture(autouse=True)
def tiny_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs give models of the size that their base file has for tests."""

    def tiny(config: str):
        cfg = load_config(config)
        cfg.merge_from_dict(cfg.get("_tiny", {}))
        return cfg

    monkeypatch.setattr(files, "load_config", tiny)


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_swin_becomes_weights_of_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = tmp_path / "swin.pth", tmp_path / "swin.safetensors"
    official = swin.official_state()
    torch.save({"model": official}, source)
    assert main(["convert", str(source), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "layout: Swin",
        f"written: {len(official) - 8} tensors, of {len(official)} in the file -> {out}",
    ]
    assert lines[2].startswith("left out: 4 (buffer, computed from the window): ")
    assert lines[3] == "left out: 4 (classifier of ImageNet, and the norm before it): head (2), norm (2)"
    metadata = metadata_of(out)
    assert metadata["source_sha256"] == sha256_of(source)
    assert (metadata["layout"], metadata["to"], metadata["mapping_version"]) == ("Swin", "encoder", "1")
    assert set(json.loads(metadata["left_out"])) == set(swin.LEFT_OUT)

    one, other = swin.encoder(out_stages=(1,)), swin.encoder(out_stages=(1,), window_size=4)
    load_official_swin(one, str(source))
    wanted = {name: value.clone() for name, value in one.state_dict().items()}
    load_official_swin(swin_again := swin.encoder(out_stages=(1,)), str(out))
    load_official_swin(other, str(out))  # tables are resized from the file's window
    again = swin_again.state_dict()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted if not name.startswith("norm"))


def test_beit3_becomes_weights_of_the_encoder(tmp_path: Path) -> None:
    source, out = tmp_path / "beit3.pth", tmp_path / "beit3.safetensors"
    torch.save({"model": beit3.official_state()}, source)
    assert main(["convert", str(source), "--out", str(out)]) == 0
    for size in (8, 12):
        one, other = beit3.encoder(size), beit3.encoder(size)
        load_official_beit3(one, str(source))
        load_official_beit3(other, str(out))
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def lavt_file(folder: Path) -> Path:
    arguments = {"optimizer": {"state": {}}, "args": Namespace(lr=5e-5), "epoch": 39}
    torch.save(lavt_content(one=False) | arguments, folder / "lavt.pth")
    return folder / "lavt.pth"


def test_lavt_becomes_weights_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["convert", str(lavt_file(tmp_path)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "not weights: args, epoch, optimizer\n" in printed and "fit lavt_swinb" in printed
    assert "not in the file" not in printed
    model = tiny_model("lavt_swinb")
    load_weights(model, out)  # all of them, as `refseg test` does
    content = lavt_content(one=False)
    assert torch.equal(model.decoder.classify.weight, content["model"]["classifier.conv1_1.weight"])


def test_the_encoder_of_a_model_can_be_taken_out(tmp_path: Path) -> None:
    out = tmp_path / "swin.safetensors"
    assert main(["convert", str(lavt_file(tmp_path)), "--out", str(out), "--to", "encoder"]) == 0
    encoder = SwinEncoder(
        arch=dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)), window_size=4, pretrained=str(out)
    )
    encoder.init_weights()
    official = lavt_content(one=False)["model"]
    assert torch.equal(encoder.norm2.weight, official["backbone.norm2.weight"])


def test_rela_becomes_weights_of_the_model(tmp_path: Path) -> None:
    source, out = tmp_path / "rela.pth", tmp_path / "model.safetensors"
    model = tiny_model("rela_swinb")
    torch.save({"model": rela_content(model), "iteration": 149_999}, source)
    assert main(["convert", str(source), "--out", str(out)]) == 0
    load_weights(model, out)
    assert metadata_of(out)["config"] == "rela/rela_swinb_grefcoco_published"


@pytest.mark.parametrize("config", ["lavt_swinb", "instalign_swinb"])
def test_a_model_of_another_shape_is_refused(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAVT's weights for a LAVT with wider words, and for InstAlign, which has other names."""
    content = lavt_content(one=False)
    content["model"]["classifier.conv2_4.weight"] = torch.zeros(64, 64, 5, 5)
    torch.save(content, tmp_path / "lavt.pth")
    arguments = ["convert", str(tmp_path / "lavt.pth"), "--out", str(tmp_path / "out.safetensors"), "--config", config]
    assert main(arguments) == 1
    problem = "1 tensors of another shape: decoder.steps.0.conv2" if config == "lavt_swinb" else "tensors unexpected"
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_mmdets_backbone_is_swin(tmp_path: Path) -> None:
    """mmdet's and mmseg's names are ours, below `backbone.`."""
    state, _ = swin_state_from_official(swin.official_state(norms=True))
    index = {"stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(9, 9)}
    weights = {f"backbone.{name}": value for name, value in (state | index).items()}
    content = {"state_dict": weights | {"decode_head.conv_seg.weight": torch.zeros(3, 4, 1, 1)}, "meta": {}}
    layout = find_layout(content)
    assert layout is not None and layout.name == "Swin"
    converted, left_out = layout.convert(content, Sizes())
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    assert sorted(left_out.values()) == ["buffer, computed from the window", "not of the backbone"]


def test_a_text_model_becomes_a_part_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """transformers' BERT for masked words, from a folder, with a head that nothing reads."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = dict(vocab_size=64, hidden_size=32, num_attention_heads=2, intermediate_size=32, num_hidden_layers=3)
    bert = BertForMaskedLM(BertConfig(**sizes))
    bert.save_pretrained(tmp_path / "bert")
    out = tmp_path / "text.safetensors"
    assert main(["convert", str(tmp_path / "bert"), "--out", str(out), "--config", "lavt_swinb"]) == 0
    assert "not in the file: " in capsys.readouterr().out
    state, model = load_file(out), tiny_model("lavt_swinb")
    assert set(state) == {name for name, _ in model.named_parameters() if name.startswith("encoder.text.")}
    model.load_state_dict(state, strict=False)
    layer = bert.bert.encoder.layer[2].output.dense
    assert torch.equal(model.encoder.text.layers[2].output.dense.weight, layer.weight)


def test_files_of_unknown_layouts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert main(["convert", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "out.safetensors")]) == 1
    assert "no published layout that refseg knows. Known: ReLA, DMMI, LAVT" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "out.pth")]) == 1
    assert "must end in .safetensors" in capsys.readouterr().err


def test_training_starts_from_published_files(tmp_path: Path) -> None:
    """`load_from` gets a model's names, with tables of its window, and the names of the others that it lacks."""
    model = tiny_model("lavt_swinb", **{"encoder.vision.window_size": 3})
    state = state_for(model, lavt_content(one=True), "lavt.pth")
    report = load_initial(model, state, "lavt.pth")
    assert report == f"{len(state)} of {len(state)} tensors loaded"
    content = {"model": swin.official_state(norms=True)}
    assert all(name.startswith("encoder.vision.") for name in state_for(model, content, "swin.pth"))
    del content["model"]["patch_embed.proj.bias"]
    with pytest.raises(
        CheckpointError, match=r"swin\.pth \(Swin\): 1 keys of Swin are missing: patch_embed\.proj\.bias"
    ):
        state_for(model, content, "swin.pth")


def test_own_weights_have_no_published_layout() -> None:
    for config in ("lavt_swinb", "instalign_swinb", "latentvg_beit3b", "baseline_tiny_refshapes"):
        assert find_layout({"state_dict": tiny_model(config).state_dict()}) is None
