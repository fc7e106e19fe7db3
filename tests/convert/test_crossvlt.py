"""CrossVLT's checkpoints give VIPA's encoder its Swin, and BERT up to the first fusion."""

import re

import pytest
import torch
from torch import Tensor

from models.official_swin import swin_state_to_official
from models.referring_checks import tiny_model
from refseg.errors import CheckpointError
from refseg.models.published import Sizes, find_layout
from refseg.models.vipa.weights import crossvlt_state


def official(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names: one module per stage of Swin, the first layers of BERT, and the parts that are different."""
    swin = {k.removeprefix("encoder.vision."): v for k, v in own.items() if k.startswith("encoder.vision.")}
    weights = {}
    for name, value in swin_state_to_official(swin).items():
        name = re.sub(r"^layers\.(\d)\.", r"\1.layers.", name)
        name = re.sub(r"^(norm(\d)\.)", r"\2.\1", name)
        weights["backbone." + name.replace("patch_embed", "0.patch_embed")] = torch.randn_like(value)
    weights["backbone.0.layers.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    for name, value in own.items():
        if re.match(r"encoder\.text\.(embeddings|layers\.0)\.", name):
            name = name.removeprefix("encoder.text.").replace("layers.", "encoder.layer.")
            weights["lang_stage1." + name] = torch.randn_like(value)
    others = ("lang_stage1.encoder.proj", "lang_stage3.crossattention.self.query", "lang_stage2.layer.0.output.dense")
    others += ("backbone.1.layers.attn2.v_q.0", "backbone.0.layers.linear1.0", "backbone.3.layers.proj")
    weights |= {f"{name}.weight": torch.zeros(1) for name in (*others, "classifier.conv1_4")}
    return weights | {"temp": torch.ones(4)}


def test_the_same_parts_are_converted_and_all_others_named() -> None:
    own = tiny_model("vipa_swinb").state_dict()
    weights = official(own)
    layout = find_layout({"model": weights})
    assert layout is not None and layout.name == "CrossVLT"
    state, left_out = layout.convert({"model": weights}, Sizes(4))
    assert len(state) + len(left_out) == len(weights)
    wanted = {
        name
        for name in own
        if re.match(r"encoder\.(vision|text\.embeddings|text\.layers\.0)\b", name) and not name.endswith("index")
    }
    assert set(state) == wanted
    assert all(state[name].shape == own[name].shape for name in state)
    assert torch.equal(state["encoder.vision.norm2.weight"], weights["backbone.2.norm2.weight"])
    place = "backbone.1.layers.blocks.0.mlp.fc1.weight"
    assert torch.equal(state["encoder.vision.stages.1.blocks.0.ffn.layers.0.0.weight"], weights[place])
    assert left_out["temp"] == "alignment loss of CrossVLT"


def test_unknown_keys_are_reported() -> None:
    weights = official(tiny_model("vipa_swinb").state_dict())
    for key in ("head.weight", "lang_stage1.gate.weight"):
        with pytest.raises(CheckpointError, match=f"1 keys are not from CrossVLT: {key}"):
            crossvlt_state(weights | {key: torch.zeros(1)})
