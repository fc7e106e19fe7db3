"""Reading untrusted files, loading the tensors that fit, and hashing weights."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.weights import (
    by_prefix,
    describe_weights,
    generator_versions,
    hash_weights,
    load_initial,
    load_weights,
    origin_of,
    read_checkpoint,
    state_dict_of,
)


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight) for name, weight in model.state_dict().items()}


def test_pickles_of_arrays_and_tensors_are_read(tmp_path: Path) -> None:
    """As detectron2's model zoo and Mask2Former's converter of Swin write them."""
    weights = {"array": np.float32([[1, 2], [3, 4]]), "tensor": torch.ones(2), "step": np.int64(7)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "third_party"}))
    content = read_checkpoint(tmp_path / "model.pkl")
    assert content["model"]["array"].tolist() == [[1, 2], [3, 4]] and content["__author__"] == "third_party"
    assert torch.equal(content["model"]["tensor"], torch.ones(2))


# Files ----------------------------------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


def write_hostile(folder: Path) -> dict[str, str]:
    """Write damaged and malicious files. Return their names with the reasons that must be given."""
    torch.save({"state_dict": {}, "extra": Attack()}, folder / "attack.pth")
    torch.save(nn.Linear(2, 2), folder / "model.pth")
    (folder / "pickle.pth").write_bytes(pickle.dumps({"state_dict": {}, "extra": Attack()}))
    (folder / "attack.pkl").write_bytes(pickle.dumps({"model": {}, "extra": Attack()}))
    (folder / "cut.pkl").write_bytes(pickle.dumps({"model": {}})[:-3])
    (folder / "cut.pth").write_bytes(b"PK\x03\x04 half")
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_bytes(b"hello \x1b[31mred\x07")
    (folder / "cut.safetensors").write_bytes(b"\xff" * 20)
    return {
        "attack.pth": r"it holds a Python object \(exec\)",
        "model.pth": r"it holds a Python object \(torch\.nn\.modules\.linear\.Linear\)",
        "pickle.pth": "it is a Python pickle",
        "attack.pkl": r"it holds a Python object \(builtins\.exec\)",
        "cut.pkl": "it is empty, truncated, or not a checkpoint",
        "cut.pth": "it is empty, truncated, or not a checkpoint",
        "empty.pth": "it is empty, truncated, or not a checkpoint",
        "text.pth": "it is empty, truncated, or not a checkpoint",
        "cut.safetensors": "it is empty, truncated, or not a checkpoint",
    }


def test_malicious_and_damaged_files(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for name, says in write_hostile(tmp_path).items():
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read as weights: {says}") as raised:
            read_checkpoint(tmp_path / name)
        message = str(raised.value)
        assert message.isprintable(), "no line break, no terminal code"
        assert len(message) < len(str(tmp_path)) + 320 and "weights_only" not in message
    assert not recwarn.list


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(CheckpointError, match=f"no such checkpoint: {path}"):
            read_checkpoint(path)


def test_state_dicts_of_other_projects_are_found() -> None:
    weights = {"a": torch.ones(1)}
    wrapped = {"module.a": weights["a"]}
    for content in (
        weights,
        {"state_dict": weights},
        {"model": weights, "epoch": 3},
        {"model": {"model": wrapped}},
        {"module": weights},
    ):
        assert state_dict_of(content, "x.pth") == weights


def test_command_line_arguments_in_a_checkpoint_are_allowed(tmp_path: Path) -> None:
    """They are a plain container. What it holds is still checked."""
    file = tmp_path / "official.pth"
    torch.save({"model": {"a": torch.ones(1)}, "args": Namespace(lr=0.1, name="base")}, file)
    assert read_checkpoint(file)["args"].lr == 0.1
    torch.save({"args": Namespace(folder=tmp_path)}, file)
    with pytest.raises(CheckpointError, match="it holds a Python object"):
        read_checkpoint(file)


def test_contents_without_a_state_dict() -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for content in (endless, {}, {"state_dict": {}}, {"epoch": 3}, {"state_dict": {1: torch.ones(1)}}, {"a\x1b": "b"}):
        with pytest.raises(CheckpointError, match=r"^x\.pth holds no state dict") as raised:
            state_dict_of(content, "x.pth")
        assert str(raised.value).isprintable()


# Loading --------------------------------------------------------------------------------------------------------------


def test_load_weights_needs_all_tensors(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    torch.save({"state_dict": ones(model), "meta": {"epoch": 4}}, tmp_path / "good.pth")
    assert load_weights(model, tmp_path / "good.pth") == {"epoch": 4}
    assert model.weight.eq(1).all()
    save_file({name: 2 * weight for name, weight in ones(model).items()}, tmp_path / "good.safetensors")
    assert load_weights(model, tmp_path / "good.safetensors") == {}
    assert model.bias.eq(2).all()

    torch.save({"weight": torch.zeros(5, 5), "scale": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError,
        match=r"other\.pth does not fit Linear: tensors 1 missing \(bias\); 1 unexpected \(scale\); 1 of another shape "
        r"\(weight has \(5, 5\) in the file, \(3, 2\) in the model\)",
    ):
        load_weights(model, tmp_path / "other.pth")
    assert model.weight.eq(2).all()


def test_misfit_names_the_generator_of_the_training_data(tmp_path: Path) -> None:
    annotations = {"format": "jsonl", "file": "data/refshapes.jsonl"}
    meta = {"dataset_meta": {"annotations": annotations, "generated": {"preset": "mini", "generator_version": 2}}}
    torch.save({"state_dict": {"weight": torch.zeros(3, 9)}, "meta": meta}, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=r"trained on data/refshapes\.jsonl, RefShapes mini, generator version 2"):
        load_weights(nn.Linear(2, 3), tmp_path / "old.pth")


def test_tensors_that_cannot_be_copied(tmp_path: Path) -> None:
    """A sparse tensor has the right shape."""
    torch.save({"weight": torch.eye(3).to_sparse(), "bias": torch.zeros(3)}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match=r"sparse\.pth holds tensors that cannot be copied"):
        load_weights(nn.Linear(3, 3), tmp_path / "sparse.pth")


def test_partial_loading_reports_the_loaded_tensors() -> None:
    """3 of the 6 tensors fit, which is half of them."""
    model = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 5)})
    before = model["head"].weight.clone()
    state = ones(model) | {"head.weight": torch.ones(7, 2), "old.a": torch.ones(1), "old.b": torch.ones(1)}
    for name in ("body.1.weight", "body.1.bias"):
        del state[name]
    assert load_initial(model, state, "x.pth") == (
        "3 of 6 tensors loaded; 3 kept their initial values: body.1 (2), head.weight; 1 of another shape: head.weight "
        "has (7, 2) in the file, (5, 2) in the model; 2 of the file not used: old (2)"
    )
    assert model["body"][0].weight.eq(1).all() and model["head"].weight.equal(before)


def test_weights_of_another_model_need_load_from_partial() -> None:
    """2 of the 6 tensors fit, which is less than half of them."""
    model = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 5)})
    state = {name: value for name, value in ones(model).items() if name.startswith("head")}
    with pytest.raises(
        CheckpointError, match=r"x\.pth is not of this model.*: 2 of 6 tensors loaded; 4 kept.*body"
    ) as no:
        load_initial(model, state, "x.pth")
    assert "50%" in str(no.value) and "load_from_partial=True" in str(no.value)
    assert not model["head"].weight.eq(1).all()
    assert load_initial(model, state, "x.pth", partial=True).startswith("2 of 6 tensors loaded")
    assert model["head"].weight.eq(1).all()
    with pytest.raises(CheckpointError, match="0 of 6 tensors loaded") as nothing:
        load_initial(model, {"other": torch.ones(1)}, "x.pth", partial=True)
    assert "load_from_partial" not in str(nothing.value)


def test_report_of_a_complete_fit() -> None:
    model = nn.Linear(2, 3)
    assert load_initial(model, ones(model), "x.pth") == "2 of 2 tensors loaded"


def test_names_are_summarized_by_prefix() -> None:
    among = ["a.b.c", "a.b.d", "a.e", "f.g", "f.h", "i"]
    assert by_prefix(["a.b.c", "a.b.d", "f.g", "f.h", "i"], among) == "a.b (2), f (2), i"
    assert by_prefix(["a.b.c"], among) == "a.b.c"
    assert by_prefix([f"w{i}" for i in range(10)], []).endswith("w7, and 2 more")
    assert by_prefix(["\x1b[31m"], []) == "[31m"


# Identity -------------------------------------------------------------------------------------------------------------


def test_hash_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    model, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    a, b = (describe_weights(model, tmp_path / f"a.{kind}") for kind in ("pth", "safetensors"))
    assert a["sha256"] != b["sha256"] and a["weights_sha256"] == b["weights_sha256"] == hash_weights(other)
    other.running_mean[0] = 1e-30
    assert hash_weights(other) != hash_weights(model), "buffers count"
    assert hash_weights(nn.BatchNorm1d(2).double()) != hash_weights(model), "the dtype counts"
    assert hash_weights(nn.Linear(2, 2).bfloat16()) and hash_weights(nn.Embedding(0, 2))


def test_hash_by_hand() -> None:
    """The hash covers a line of name, dtype, and shape, and then the bytes."""
    import hashlib

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    assert hash_weights(model) == hashlib.sha256(b"weight torch.float32 (1, 1)\n\x00\x00\x80\x3f").hexdigest()


def test_origin_of_a_checkpoint() -> None:
    new = {"annotations": {"file": "d/refshapes.jsonl"}, "generated": {"preset": "mini", "generator_version": 3}}
    old = {"annotations": {"format": "jsonl", "file": "d/refshapes.jsonl"}}
    refer = {"annotations": {"refs": "r.json"}}
    assert origin_of({"dataset_meta": new}) == "trained on d/refshapes.jsonl, RefShapes mini, generator version 3"
    assert "generator version unknown" in origin_of({"dataset_meta": old})
    assert origin_of({"dataset_meta": {"mixture": [refer, new]}}).startswith("trained on r.json, d/refshapes.jsonl")
    assert generator_versions({"mixture": [refer, new, old]}) == {"3", "unknown"}
    for meta in (None, {}, [], {"dataset_meta": None}, {"dataset_meta": {"mixture": 3}}, {"annotations": 3}):
        assert origin_of(meta) == "" and generator_versions(meta) == set()
