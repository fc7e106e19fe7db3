"""Official BEiT-3 weights <-> `BEiT3Encoder`'s.

Official files have everything under `model`, with the prefix `beit3.`; `.A` is vision, `.B` language. What is outside
of the prefix belongs to the heads of other tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from refseg.datasets.tokenizers import BEIT3
from refseg.errors import CheckpointError
from refseg.models.encoders.beit3 import PREFIX, resize_positions
from refseg.models.encoders.swin_weights import inner_state, shown
from refseg.paths import data_path

WHERE = f"{BEIT3} (beit3_base_patch16_224.pth and its neighbours)"
OFFICIAL_PREFIX = "beit3."
EXPERTS = {"A": "vision", "B": "language"}
SINGLE = {
    "text_embed.weight": "text_embed.weight",
    "vision_embed.proj.weight": "patch_embed.weight",
    "vision_embed.proj.bias": "patch_embed.bias",
    "vision_embed.cls_token": "class_token",
    "encoder.embed_positions.A.weight": "positions.vision.weight",
    "encoder.embed_positions.B.weight": "positions.language.weight",
}
IN_LAYERS = {  # with .A and .B at their end
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "self_attn.inner_attn_ln": "inner_norm",
    "self_attn_layer_norm": "norm1",
    "final_layer_norm": "norm2",
}
IN_FFN = {"fc1": "fc1", "ffn_layernorm": "norm", "fc2": "fc2"}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.([AB])\.(weight|bias)")
FFN = re.compile(r"encoder\.layers\.(\d+)\.ffn\.([AB])\.(\w+)\.(weight|bias)")
NORM = re.compile(r"encoder\.layer_norm\.([AB])\.(weight|bias)")
MASK_TOKEN = "vision_embed.mask_token"


def own_name(name: str) -> str | None:
    """Our name of an official one without prefix; None if it is unknown."""
    if name in SINGLE:
        return SINGLE[name]
    if (found := FFN.fullmatch(name)) and found[3] in IN_FFN:
        return f"layers.{found[1]}.ffn.{EXPERTS[found[2]]}.{IN_FFN[found[3]]}.{found[4]}"
    if (found := LAYER.fullmatch(name)) and found[2] in IN_LAYERS:
        return f"layers.{found[1]}.{IN_LAYERS[found[2]]}.{EXPERTS[found[3]]}.{found[4]}"
    if found := NORM.fullmatch(name):
        return f"norm.{EXPERTS[found[1]]}.{found[2]}"
    return None


def beit3_state_from_official(
    official: Mapping[str, Tensor], *, grid: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`BEiT3Encoder`'s state, without its pyramid, for images of `grid` patches; and the keys left out, with the
    reason. A key below the prefix that is not BEiT-3's is an error."""
    state, left_out, unknown = {}, {}, []
    for full, value in official.items():
        key = full.removeprefix("module.")
        if not key.startswith(OFFICIAL_PREFIX):
            left_out[full] = "a head of another task"
        elif (name := key.removeprefix(OFFICIAL_PREFIX)) == MASK_TOKEN:
            left_out[full] = "stands for masked patches in pretraining"
        elif (own := own_name(name)) is None:
            unknown.append(full)
        else:
            state[own] = value
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys are not BEiT-3's: {shown(unknown)}")
    if not state:
        raise CheckpointError(f"no key begins with {OFFICIAL_PREFIX!r}: {shown(sorted(official))}")
    if (table := state.get("positions.vision.weight")) is not None:
        side = round((len(table) - PREFIX) ** 0.5)
        if side**2 != len(table) - PREFIX:
            raise CheckpointError(f"encoder.embed_positions.A.weight has {len(table)} rows: not 3 and a square")
        state["positions.vision.weight"] = resize_positions(table, grid)
    return state, left_out


def load_official_beit3(encoder: Any, file: str) -> dict[str, str]:
    """Loads a file into a `BEiT3Encoder`, all but its pyramid. Returns the keys left out, with the reason."""
    from refseg.apis.runner import read_checkpoint

    path = data_path(file)
    if not path.is_file():
        raise CheckpointError(
            f"no BEiT-3 weights at {path}. Official ones: {WHERE}. Or set pretrained=None, to train from "
            "random weights."
        )
    try:
        state, left_out = beit3_state_from_official(inner_state(read_checkpoint(path)), grid=encoder.grid)
        check_fits(state, encoder.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    encoder.load_state_dict(state, strict=False)
    return left_out


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Every weight of the encoder but the pyramid's is there, in its shape, and no other."""
    own = {name: weight for name, weight in own.items() if not name.startswith("pyramid.")}
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [name for name in state if name in own and state[name].shape != own[name].shape]
    for what, names in (("missing", missing), ("too many", extra), ("of another shape", shapes)):
        if names:
            raise CheckpointError(f"weights of another BEiT-3 than this encoder's: {len(names)} {what}: {shown(names)}")
