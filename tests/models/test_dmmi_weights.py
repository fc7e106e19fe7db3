"""Published DMMI weights: every key finds a place or is left out for a reason, and the model computes with them."""

import pytest
import torch
from torch import nn

from models.referring_checks import logits_of, prepared, tiny_model
from models.test_lavt_weights import official_content as lavt_content
from refseg.errors import CheckpointError
from refseg.models.dmmi.decoder import DecoderLayer
from refseg.models.dmmi.weights import decoder_names, dmmi_state_from_official
from refseg.models.layers.decoder_weights import decoder_state
from refseg.models.published import find_layout, state_for
from refseg.weights import load_initial

D = 32  # channels of words and of the decoders; 64 in feed-forward networks


def official_content() -> dict:
    """A checkpoint in the published layout, of random tensors, in the sizes of `dmmi_swinb` shrunk for tests."""
    draw = torch.Generator().manual_seed(2)
    lavt = lavt_content(one=False)
    kept = (key for key in lavt["model"] if ".fusion." not in key and not key.startswith("classifier."))
    model = {key: lavt["model"][key] for key in kept}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        model[f"{name}.weight"] = torch.randn(*shape, generator=draw) * 0.1
        if bias:
            model[f"{name}.bias"] = torch.randn(shape[0], generator=draw) * 0.1

    def add_norm(name: str) -> None:
        add(name, D)
        model[f"{name}.running_mean"] = torch.randn(D, generator=draw)
        model[f"{name}.running_var"] = torch.rand(D, generator=draw) + 0.5
        model[f"{name}.num_batches_tracked"] = torch.tensor(3)

    for stage, c in enumerate((16, 32, 64, 128)):
        layer = f"backbone.layers.{stage}"
        add(f"{layer}.W_l.0", D, D, 1)
        add(f"{layer}.fusion.vis_project.0", c, c, 1)
        add(f"{layer}.fusion.project_mm.0", c, c, 1)
        attention = f"{layer}.fusion.image_lang_att"
        for part, *shape in (("f_value", c, D), ("f_value_v", D, c), ("W", c, c), ("W2", D, D)):
            add(f"{attention}.{part}.0", *shape, 1)
        for side, short in ((1, c), (3, c // 2), (5, c // 4)):
            part = f"{attention}.refineimg{side}{side}"
            add(f"{part}.f_query.0", short, c, 1)
            add(f"{part}.f_query2.0", c, short * side**2, 1)
            add(f"{part}.f_key.0", c, D, 1)
        for n in (1, 2, 3):
            part = f"{attention}.refinelan{n}1"
            add(f"{part}.f_query.0", c // n, D, 1)
            add(f"{part}.f_query2.0", D, c // n * n, 1)
            add(f"{part}.f_key.0", D, c, 1)
        model[f"{attention}.vis_weight"] = torch.rand(3, generator=draw)
        model[f"{attention}.lan_weight"] = torch.rand(3, generator=draw)
    for name in ("transformer_fusion1", "transformer_fusion2", "lan_func"):
        for kind in ("decoder_layer", "transformer_model.layers.0"):
            for key, value in nn.TransformerDecoderLayer(D, 8, 64).state_dict().items():
                model[f"classifier.{name}.{kind}.{key}"] = torch.randn(value.shape, generator=draw) * 0.1
    for level, inputs in ((4, 128 + 64), (3, D + 32), (2, D + 16)):
        for number, channels in ((1, inputs), (2, D)):
            add(f"classifier.conv{number}_{level}", D, channels, 3, 3, bias=False)
            add_norm(f"classifier.bn{number}_{level}")
    add("classifier.lan_func.conv1", D, D, 3, 3, bias=False)
    add_norm("classifier.lan_func.bn1")
    add("classifier.conv1_1", 2, D, 1, 1)
    add("classifier.crossfuse1.linear", D, 2 * D)
    add("classifier.crossfuse2.linear", D, 2 * D)
    add("contrastive.align_lan.0", D, D, 1)
    return {"model": model, "bert_model": lavt["bert_model"], "epoch": 39}


def test_every_key_is_converted_or_left_out() -> None:
    content = official_content()
    assert find_layout(content).name == "DMMI"
    state, left_out = dmmi_state_from_official(content, window_size=4)
    # Query, key and value are one tensor there and two here: 6 attentions, with weights and biases
    assert len(content["model"]) + len(content["bert_model"]) == len(state) + len(left_out) - 2 * 6
    assert sum("template" in reason for reason in left_out.values()) == 3 * 18
    assert sum("norm cancels" in reason for reason in left_out.values()) == 4 * 11
    own = tiny_model("dmmi_swinb").state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in own.items() if not k.endswith("relative_position_index")
    }


def test_converted_weights_give_a_new_result() -> None:
    """Loaded weights are used, as `load_from` does. (docs/convert.md has the difference to the published code.)"""
    model = tiny_model("dmmi_swinb")
    batch = prepared(model)
    before = logits_of(model, batch)
    state = state_for(model, official_content(), "dmmi.pth")
    assert load_initial(model, state, "dmmi.pth") == f"{len(state)} of {len(state)} tensors loaded"
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-4)


def test_decoder_layers_compute_as_pytorchs() -> None:
    theirs = nn.TransformerDecoderLayer(D, 8, 64, batch_first=True).eval()
    prefix = "classifier.lan_func.transformer_model.layers.0."
    state, unknown, _ = decoder_state({prefix + k: v for k, v in theirs.state_dict().items()}, decoder_names())
    ours = DecoderLayer(D, num_heads=8, ffn_dim=64).eval()
    ours.load_state_dict({name.removeprefix("text_decoder.layer."): value for name, value in state.items()})
    assert unknown == []
    x, memory = torch.randn(2, 5, D), torch.randn(2, 7, D)
    mask, memory_mask = torch.arange(5) < torch.tensor([[5], [3]]), torch.arange(7) < torch.tensor([[2], [7]])
    expected = theirs(x, memory, tgt_key_padding_mask=~mask, memory_key_padding_mask=~memory_mask)
    torch.testing.assert_close(ours(x, memory, mask=mask, memory_mask=memory_mask), expected)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.layers.3.fusion.image_lang_att.lan_weight",
        "backbone.layers.1.fusion.image_lang_att.refinelan31.f_query2.0.bias",
        "backbone.layers.0.W_l.0.weight",
        "classifier.transformer_fusion2.transformer_model.layers.0.multihead_attn.out_proj.weight",
        "classifier.lan_func.bn1.running_var",
        "contrastive.align_lan.0.bias",
    ],
)
def test_each_missing_key_raises(key: str) -> None:
    content = official_content()
    del content["model"][key]
    with pytest.raises(CheckpointError, match="1 weights of DMMI are missing"):
        dmmi_state_from_official(content, window_size=4)


def test_unknown_keys_are_reported() -> None:
    """Such as those of the published variant with a ResNet."""
    content = official_content()
    content["model"]["backbone.all_fusion1.W_l.0.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 keys are not from DMMI.*all_fusion1"):
        dmmi_state_from_official(content, window_size=4)
