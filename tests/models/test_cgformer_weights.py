"""Published CGFormer weights: every key finds a place or is left out for a reason, and the model computes with them."""

import pytest
import torch
from torch import Tensor

from models.referring_checks import logits_of, prepared, tiny_model
from models.test_lavt_weights import official_content as lavt_content
from refseg.errors import CheckpointError
from refseg.models.cgformer.weights import cgformer_state_from_official
from refseg.models.published import find_layout

C, LEVELS = 32, (64, 32, 16)  # channels of the decoder, and of the levels that are joined


def official_content() -> dict:
    """A checkpoint in the published layout, of random tensors, in the sizes of `cgformer_swinb` shrunk for tests."""
    draw = torch.Generator().manual_seed(2)
    model = {}
    for key, value in lavt_content(one=True)["model"].items():
        if not key.startswith("classifier."):
            model[key.replace(".fusion.", ".pwam_fusion.").replace("res_gate", "pwam_gate")] = value

    def add(name: str, *shape: int) -> None:
        model[f"decoder.{name}"] = torch.randn(*shape, generator=draw) * 0.1

    def add_affine(name: str, *shape: int) -> None:
        add(f"{name}.weight", *shape)
        add(f"{name}.bias", shape[0])

    def add_batch_norm(name: str) -> None:
        add_affine(name, C)
        add(f"{name}.running_mean", C)
        model[f"decoder.{name}.running_var"] = torch.rand(C, generator=draw) + 0.5
        model[f"decoder.{name}.num_batches_tracked"] = torch.tensor(3)

    def add_mlp(name: str) -> None:
        add_affine(f"{name}.fc1", 2 * C, C)
        add_affine(f"{name}.fc2", C, 2 * C)

    add("tokens.weight", 2, C)
    for level, side in enumerate((4, 8, 16)):
        add(f"layers.{level}.positional_embedding", side**2, C)
        add_affine(f"fuses.{level}.fusion.0", C, (128 if level == 0 else C) + LEVELS[level], 3, 3)
        add_batch_norm(f"fuses.{level}.fusion.1")
        add_affine(f"fuses.{level}.fusion.3", C, C, 3, 3)
        add_batch_norm(f"fuses.{level}.fusion.4")
        if level:
            for part in ("q_proj", "k_proj", "v_proj"):
                add(f"layers.{level}.loadtoken.cross_attn.{part}.weight", C, 32)
            add_affine(f"layers.{level}.loadtoken.cross_attn.proj", C, C)
            for norm in ("loadtoken.normq", "loadtoken.normk", "loadtoken.norm", "norm"):
                add_affine(f"layers.{level}.{norm}", C)
            add_mlp(f"layers.{level}.loadtoken.mlp")
            add_mlp(f"layers.{level}.mlp")
    for group in ("cgattention1", "cgattention2"):
        for norm in ("norm_v", "norm_t", "norm"):
            add_affine(f"{group}.{norm}", C)
        for linear in ("q_proj", "k_proj", "v_proj", "proj"):
            add_affine(f"{group}.{linear}", C, C)
        add_mlp(f"{group}.mlp")
        add(f"{group}.tau", 1)
    for number in (1, 3):
        add(f"proj.vis.{number}.0.weight", C, C, 3, 3)
        add_batch_norm(f"proj.vis.{number}.1")
    add_affine("proj.vis.4", C, C, 1, 1)
    add_affine("proj.txt", C + 1, C)
    return {"epoch": 49, "cur_iou": 0.7, "prec": {"Pr@50": 80.0}, "model_state_dict": model}


def test_every_key_is_converted_or_left_out() -> None:
    content = official_content()
    assert find_layout(content).name == "CGFormer"
    state, left_out = cgformer_state_from_official(content, window_size=4)
    assert len(content["model_state_dict"]) == len(state) + len(left_out) + 2  # keys and values of two attentions
    assert sum("does not use" in reason for reason in left_out.values()) == 2 * 6  # norm and MLP of two levels
    assert sum("subtracted" in reason for reason in left_out.values()) == 6
    own = tiny_model("cgformer_swinb").state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in own.items() if not k.endswith("relative_position_index")
    }


def test_converted_weights_give_a_new_result() -> None:
    """Loaded weights are used. (docs/convert.md has the difference to the published code.)"""
    state, _ = cgformer_state_from_official(official_content(), window_size=4)
    model = tiny_model("cgformer_swinb")
    batch = prepared(model)
    before = logits_of(model, batch)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(key.endswith("relative_position_index") for key in missing)
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-4)


def test_biases_before_a_norm_become_part_of_its_mean() -> None:
    """norm(conv(x) + bias) is norm(conv(x)) with a mean that is smaller by the bias."""
    content = official_content()
    state, _ = cgformer_state_from_official(content, window_size=4)
    model = tiny_model("cgformer_swinb").eval()
    model.load_state_dict(state, strict=False)
    official: dict[str, Tensor] = {
        key.removeprefix("decoder.fuses.0.fusion."): value for key, value in content["model_state_dict"].items()
    }
    join, x = model.decoder.joins[0], torch.randn(1, 192, 4, 4)
    conv = torch.nn.functional.conv2d(x, official["0.weight"], official["0.bias"], padding=1)
    norm = (official[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    torch.testing.assert_close(join.norm1(join.conv1(x)), torch.nn.functional.batch_norm(conv, *norm))


def test_positions_keep_their_pixels() -> None:
    content = official_content()
    state, _ = cgformer_state_from_official(content, window_size=4)
    table = content["model_state_dict"]["decoder.layers.1.positional_embedding"]  # (8 * 8, C)
    assert torch.equal(state["decoder.positions.1"][:, 2, 5], table[2 * 8 + 5])


@pytest.mark.parametrize(
    "key",
    [
        "decoder.tokens.weight",
        "decoder.layers.2.loadtoken.cross_attn.v_proj.weight",
        "decoder.fuses.1.fusion.3.bias",
        "decoder.cgattention2.tau",
        "decoder.proj.vis.3.1.running_var",
        "backbone.layers.1.pwam_fusion.project_mm.0.weight",
        "text_encoder.encoder.layer.1.output.dense.bias",
    ],
)
def test_each_missing_key_raises(key: str) -> None:
    content = official_content()
    del content["model_state_dict"][key]
    with pytest.raises(CheckpointError, match="1 weights of CGFormer are missing"):
        cgformer_state_from_official(content, window_size=4)


def test_unknown_keys_are_reported() -> None:
    content = official_content()
    content["model_state_dict"]["decoder.cgattention3.tau"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 keys are not from CGFormer.*cgattention3\.tau"):
        cgformer_state_from_official(content, window_size=4)
