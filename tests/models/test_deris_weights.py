"""Published weights of DeRIS and of Mask2Former for it: every key finds a place or is left out for a reason."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.encoders.test_beit3_weights import ARCH
from models.encoders.test_beit3_weights import official_state as beit3_state
from models.official_swin import swin_state_to_official
from models.referring_checks import logits_of, prepared, tiny_model
from models.test_rela_weights import attention, linear, norm, pixel_decoder_shapes
from refseg.errors import CheckpointError
from refseg.models import DeRIS
from refseg.models.deris.weights import deris_state_from_official
from refseg.models.published import find_layout, state_for
from refseg.weights import load_initial

DIM, WIDE, FFN, READER, QUERIES, BLOCKS = 32, 8, 32, 16, 5, 3  # of the tiny model, with the BEiT-3 of its own test
SETTINGS = {"encoder.arch": {"_delete_": True, **ARCH}, "encoder.image_size": 8, "encoder.patch_size": 4}
Shapes = dict[str, tuple[int, ...]]


def pixel_shapes(*, biased: bool) -> Shapes:
    """Mask2Former's; DeRIS's copy has biases in the finest level's convolutions, and the names of a sequence."""
    shapes = {**pixel_decoder_shapes(), "mask_features.weight": (DIM, DIM, 1, 1), "mask_features.bias": (DIM,)}
    if biased:
        for name in ("adapter_1", "layer_1"):
            shapes |= {f"{name}.0.weight": shapes.pop(f"{name}.weight"), f"{name}.0.bias": (DIM,)}
            shapes |= {f"{name}.1.{kind}": shapes.pop(f"{name}.norm.{kind}") for kind in ("weight", "bias")}
    return shapes


def block_shapes(blocks: int, queries: int) -> Shapes:
    """Mask2Former's query decoder without its queries and classes."""
    shapes: Shapes = {"query_embed.weight": (queries, DIM), "level_embed.weight": (3, DIM)} | norm("decoder_norm")
    for block in range(blocks):
        for place, name in (("cross", "multihead_attn"), ("self", "self_attn")):
            layer = f"transformer_{place}_attention_layers.{block}"
            shapes |= attention(f"{layer}.{name}") | norm(f"{layer}.norm")
        ffn = f"transformer_ffn_layers.{block}"
        shapes |= linear(f"{ffn}.linear1", FFN, DIM) | linear(f"{ffn}.linear2", DIM, FFN) | norm(f"{ffn}.norm")
    for layer in range(3):
        shapes |= linear(f"mask_embed.layers.{layer}", DIM, DIM)
    return shapes


def predictor_shapes() -> Shapes:
    shapes = block_shapes(BLOCKS, QUERIES) | linear("cls_embed", 2, DIM) | linear("SEG_cls", 2, DIM)
    for layer in range(3):
        shapes |= linear(f"box_embed.layers.{layer}", 4 if layer == 2 else DIM, DIM)
    shapes |= linear("SEG_proj.layers.0", DIM, DIM) | linear("SEG_proj.layers.1", DIM, DIM)
    shapes |= {"channel_proj_conv.weight": (DIM, 2 * DIM, 1, 1), "channel_proj_conv.bias": (DIM,)}
    for loop in range(BLOCKS + 1):
        reads = f"Q2TCA.{loop}"
        shapes |= attention(f"query_SA.{loop}.self_attn") | norm(f"query_SA.{loop}.norm")
        shapes |= attention(f"{reads}.self_attn") | linear(f"refer_proj.{loop}", DIM, 2 * DIM)
        for part in ("q", "k", "v", "proj"):
            shapes |= linear(f"{reads}.cross_attn.{part}", DIM, DIM)
        shapes |= linear(f"{reads}.cross_attn.mapmlp.0", 256, 1) | {f"{reads}.cross_attn.mapmlp.2.weight": (2, 256)}
        shapes |= linear(f"{reads}.linear1", FFN, DIM) | linear(f"{reads}.linear2", DIM, FFN)
        for number in (1, 2, 3):
            shapes |= norm(f"{reads}.norm{number}")
    return shapes


def cognition_shapes() -> Shapes:
    shapes = {"init_query.weight": (QUERIES, WIDE)} | linear("logit_embed", 2, DIM) | linear("nt_embed", 1, DIM)
    for name in ("vis_embed", "text_embed", "perception_embed"):
        shapes |= linear(name, DIM, WIDE)
    for layer in range(3):
        place = f"roialigner.TextCorrelation.layers.{layer}"
        shapes |= attention(f"{place}.attentions.0.attn") | attention(f"{place}.attentions.1.attn")
        shapes |= linear(f"{place}.ffns.0.layers.0.0", READER, DIM) | linear(f"{place}.ffns.0.layers.1", DIM, READER)
        for number in range(3):
            shapes |= norm(f"{place}.norms.{number}")
    return shapes | norm("roialigner.TextCorrelation.post_norm_layer")


def random_state(shapes: Shapes, prefix: str = "") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {prefix + name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}


def official_swin(ours: DeRIS) -> dict[str, Tensor]:
    own = {k.removeprefix("vision."): v for k, v in ours.state_dict().items() if k.startswith("vision.")}
    return random_state({name: value.shape for name, value in swin_state_to_official(own).items()})


@pytest.fixture(scope="module")
def ours() -> DeRIS:
    return tiny_model("deris_beit3b", **SETTINGS)


@pytest.fixture
def content(ours: DeRIS) -> dict:
    """A checkpoint in the published layout, of random tensors."""
    cognition, perception = "understanding_branch.", "perception_branch."
    state = {f"{cognition}vis_enc.{k}": v * 0.2 for k, v in beit3_state().items() if k.startswith("beit3.")}
    state |= random_state(cognition_shapes(), cognition)
    state |= {f"{perception}hier_vision_encoder.{k}": v for k, v in official_swin(ours).items()}
    index = f"{perception}hier_vision_encoder.layers.0.blocks.0.attn.relative_position_index"
    state |= {index: torch.zeros(16, 16, dtype=torch.long), "head.criterion.empty_weight": torch.tensor([1, 0.1])}
    state |= random_state(pixel_shapes(biased=True), perception + "pixel_decoder.")
    state |= random_state(predictor_shapes(), perception + "predictor.")
    state |= random_state({"perception_query_embed.weight": (QUERIES, DIM)} | linear("nt_embed", 1, DIM), perception)
    return {"epoch": 5, "lr": 1e-4, "state_dict": {f"module.{name}": value for name, value in state.items()}}


def test_every_key_is_converted_or_left_out(ours: DeRIS, content: dict) -> None:
    """PyTorch's attention has one tensor for query, key and value, ours two (4 per attention of 2 x 3 in blocks, 2 x 4
    in loopbacks, 2 x 3 in readers, instead of 2 + 2); separate ones are three there; one convolution becomes two."""
    assert find_layout(content).name == "DeRIS"
    state, left_out = deris_state_from_official(content)
    whole, separate = 2 * BLOCKS + 2 * (BLOCKS + 1) + 2 * 3, BLOCKS + 1
    assert len(content["state_dict"]) + 2 * whole - 2 * separate + 1 == len(state) + len(left_out)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in ours.state_dict().items() if not k.endswith("relative_position_index")
    }
    assert sum("does not use" in reason for reason in left_out.values()) == 3 + 4 + 3 * (BLOCKS + 1)


def test_separate_projections_and_branches_keep_their_order(content: dict) -> None:
    state, _ = deris_state_from_official(content)
    official = {key.removeprefix("module.perception_branch.predictor."): v for key, v in content["state_dict"].items()}
    ours, theirs = "decoder.loopbacks.2.read_words.cross_attn_words", "Q2TCA.2.cross_attn"
    assert torch.equal(state[f"{ours}.query.weight"], official[f"{theirs}.q.weight"])
    key_value = torch.cat([official[f"{theirs}.{part}.weight"] for part in "kv"])
    assert torch.equal(state[f"{ours}.key_value.weight"], key_value)
    joined = torch.cat([state[f"decoder.join_{part}.weight"] for part in ("pixels", "patches")], 1)
    assert torch.equal(joined, official["channel_proj_conv.weight"])


def test_converted_weights_give_a_new_result(content: dict) -> None:
    """Loaded weights are used. (docs/convert.md has the difference to the published code.)"""
    model = tiny_model("deris_beit3b", **SETTINGS)
    batch = prepared(model)
    before = logits_of(model, batch)
    missing, unexpected = model.load_state_dict(deris_state_from_official(content)[0], strict=False)
    assert unexpected == []
    assert all(key.endswith("relative_position_index") for key in missing)
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-4)


@pytest.mark.parametrize(
    "key",
    [
        "understanding_branch.init_query.weight",
        "understanding_branch.vis_enc.beit3.encoder.layers.0.ffn.B.fc1.bias",
        "understanding_branch.roialigner.TextCorrelation.layers.1.norms.2.weight",
        "perception_branch.hier_vision_encoder.norm2.bias",
        "perception_branch.pixel_decoder.layer_1.0.bias",
        "perception_branch.predictor.channel_proj_conv.weight",
        "perception_branch.predictor.transformer_ffn_layers.2.linear1.weight",
        "perception_branch.predictor.Q2TCA.3.norm1.weight",
    ],
)
def test_each_missing_key_raises(content: dict, key: str) -> None:
    del content["state_dict"]["module." + key]
    with pytest.raises(CheckpointError, match="1 weights of DeRIS are missing"):
        deris_state_from_official(content)


@pytest.mark.parametrize(
    "branch", ["understanding_branch.x", "perception_branch.predictor.x", "perception_branch.x", "x"]
)
def test_unknown_keys_are_reported(content: dict, branch: str) -> None:
    content["state_dict"][f"module.{branch}.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=rf"1 keys are not from DeRIS.*{branch}\.weight"):
        deris_state_from_official(content)


def test_training_starts_from_a_published_file(content: dict) -> None:
    """`load_from` fills the whole model, with tables of its window and its patches."""
    model = tiny_model("deris_beit3b", **SETTINGS | {"vision.window_size": 3, "encoder.image_size": 12})
    state = state_for(model, content, "deris.pth")
    assert load_initial(model, state, "deris.pth") == f"{len(state)} of {len(state)} tensors loaded"


def mask2former_file(ours: DeRIS, folder: Path, **changes: Tensor) -> str:
    """Mask2Former in detectron2's layout: one block and two queries more than DeRIS takes."""
    head, queries = "sem_seg_head.", QUERIES + 2
    shapes = block_shapes(BLOCKS + 1, queries) | {"query_feat.weight": (queries, DIM)} | linear("class_embed", 3, DIM)
    state = {f"backbone.{name}": value for name, value in official_swin(ours).items()}
    state |= random_state(pixel_shapes(biased=False), head + "pixel_decoder.")
    state |= random_state(shapes, head + "predictor.")
    torch.save({"model": state | changes}, folder / "mask2former.pth")
    return str(folder / "mask2former.pth")


def test_the_perception_branch_starts_from_mask2former(ours: DeRIS, tmp_path: Path) -> None:
    file = mask2former_file(ours, tmp_path)
    official = torch.load(file)["model"]
    model = tiny_model("deris_beit3b", **SETTINGS, pretrained=file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    after = model.state_dict()
    kept = {name for name, value in before.items() if torch.equal(value, after[name])}
    changed = ("vision.", "pixel_decoder.", "decoder.blocks.", "decoder.mask.", "decoder.norm.", "decoder.level_embed")
    biases = {f"pixel_decoder.mmdet_decoder.{name}_convs.0.conv.bias" for name in ("lateral", "output")}
    names = {name for name in before if name.startswith(changed)} | {"decoder.query_position"}
    assert set(before) - kept == {n for n in names - biases if not n.endswith("relative_position_index")}
    positions = official["sem_seg_head.predictor.query_embed.weight"]
    assert torch.equal(after["decoder.query_position"], positions[:QUERIES])


def test_a_mask2former_of_another_size_raises(ours: DeRIS, tmp_path: Path) -> None:
    file = mask2former_file(ours, tmp_path, **{"sem_seg_head.predictor.level_embed.weight": torch.zeros(3, 2)})
    model = tiny_model("deris_beit3b", **SETTINGS, pretrained=file)
    with pytest.raises(CheckpointError, match=r"model\.pretrained: .* 1 tensors have another shape.*level_embed"):
        model.init_weights()
    model = tiny_model("deris_beit3b", **SETTINGS, pretrained=str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        model.init_weights()
