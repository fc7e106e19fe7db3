"""Published LAVT weights: every key finds a place or is left out for a reason, and the model computes with them."""

import pytest
import torch
from torch import Tensor

from models.official_swin import swin_state_to_official
from models.referring_checks import logits_of, prepared, tiny_model
from refseg.errors import CheckpointError
from refseg.models.lavt.weights import lavt_state_from_official


def official_content(*, one: bool) -> dict:
    """A checkpoint in the published layout (facts: section E.2), of random tensors, in the sizes of `lavt_swinb`
    shrunk for tests: 4 stages of 16, 32, 64, 128 channels, decoder of 64, BERT of 3 layers and 32 channels."""
    ours = tiny_model("lavt_swinb")
    draw = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.1

    swin = {k.removeprefix("encoder.vision."): v for k, v in ours.state_dict().items() if "encoder.vision." in k}
    model = {f"backbone.{k}": random(*v.shape) for k, v in swin_state_to_official(swin).items()}
    for stage, blocks in enumerate((1, 1, 2, 1)):
        dim = 16 * 2**stage
        for block in range(blocks):
            name = f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index"
            model[name] = torch.zeros(16, 16, dtype=torch.long)
        parts = {"vis_project": dim, "image_lang_att.f_query": dim, "image_lang_att.f_key": 32}
        parts |= {"image_lang_att.f_value": 32, "image_lang_att.W": dim, "project_mm": dim}
        for part, in_dim in parts.items():
            model[f"backbone.layers.{stage}.fusion.{part}.0.weight"] = random(dim, in_dim, 1)
            model[f"backbone.layers.{stage}.fusion.{part}.0.bias"] = random(dim)
        for layer in (0, 2):
            model[f"backbone.layers.{stage}.res_gate.{layer}.weight"] = random(dim, dim)
    for level, in_dim in (("4", 128 + 64), ("3", 64 + 32), ("2", 64 + 16)):
        model[f"classifier.conv1_{level}.weight"] = random(64, in_dim, 3, 3)
        model[f"classifier.conv2_{level}.weight"] = random(64, 64, 3, 3)
        for norm in ("bn1", "bn2"):
            for kind in ("weight", "bias", "running_mean", "running_var"):
                model[f"classifier.{norm}_{level}.{kind}"] = random(64).abs()
            model[f"classifier.{norm}_{level}.num_batches_tracked"] = torch.tensor(3)
    model["classifier.conv1_1.weight"], model["classifier.conv1_1.bias"] = random(2, 64, 1, 1), random(2)
    text = {k.removeprefix("encoder.text."): v for k, v in ours.state_dict().items() if "encoder.text." in k}
    bert = {k.replace("layers.", "encoder.layer."): random(*v.shape) for k, v in text.items()}
    bert["embeddings.position_ids"] = torch.arange(16)[None]
    if one:
        return {"model": model | {f"text_encoder.{k}": v for k, v in bert.items()}, "epoch": 39}
    return {"model": model, "bert_model": bert, "epoch": 39}


@pytest.mark.parametrize("one", [False, True])
def test_every_key_is_converted_or_left_out(one: bool) -> None:
    content = official_content(one=one)
    state, left_out = lavt_state_from_official(content, window_size=4)
    given = len(content["model"]) + len(content.get("bert_model", {}))
    assert given == len(state) + len(left_out)
    assert sum("stage" in reason for reason in left_out.values()) == 2  # both layers of the last gate
    assert sum("bias" in reason for reason in left_out.values()) == 8  # two in each of four stages
    own = tiny_model("lavt_swinb").state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in own.items() if not k.endswith("relative_position_index")
    }


def test_converted_weights_give_the_published_result() -> None:
    """Loaded weights are used. (Against the published code itself the difference was 1e-6 at 480x480; no test can show
    that, as that code is not here.)"""
    state, _ = lavt_state_from_official(official_content(one=False), window_size=4)
    model = tiny_model("lavt_swinb")
    batch = prepared(model)
    before = logits_of(model, batch)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(key.endswith("relative_position_index") for key in missing)
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-4)


def test_unknown_keys_are_reported() -> None:
    content = official_content(one=False)
    content["model"]["backbone.layers.0.fusion.extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"fusion\.extra"):
        lavt_state_from_official(content, window_size=4)


def test_missing_keys_are_reported() -> None:
    content = official_content(one=False)
    del content["model"]["backbone.layers.2.blocks.1.attn.qkv.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.weight"):
        lavt_state_from_official(content, window_size=4)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("model", "classifier.conv1_1.weight"),
        ("model", "classifier.bn2_3.running_var"),
        ("model", "backbone.layers.1.fusion.project_mm.0.weight"),
        ("model", "backbone.layers.0.res_gate.2.weight"),
        ("model", "backbone.norm2.weight"),
        ("bert_model", "encoder.layer.1.output.dense.bias"),
        ("bert_model", "embeddings.word_embeddings.weight"),
    ],
)
def test_each_missing_key_raises(part: str, key: str) -> None:
    content = official_content(one=False)
    del content[part][key]
    with pytest.raises(CheckpointError, match="1 weights of LAVT are missing"):
        lavt_state_from_official(content, window_size=4)


def test_other_checkpoints_are_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"Not a LAVT checkpoint.*Found: state_dict"):
        lavt_state_from_official({"state_dict": {}})
    content = official_content(one=False)
    del content["bert_model"]
    with pytest.raises(CheckpointError, match=r"missing .*encoder\.text"):
        lavt_state_from_official(content, window_size=4)
