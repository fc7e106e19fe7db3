"""Convert official BEiT-3 weights to weights of `BEiT3Encoder`.

Official files have everything under `model`, with the prefix `beit3.`; `.A` is vision, `.B` language. Keys without the
prefix belong to heads of other tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from refseg.datasets.tokenizers import BEIT3
from refseg.errors import CheckpointError
from refseg.models.encoders.beit3 import PREFIX, resize_positions
from refseg.models.encoders.official_weights import load_official, shown

WHERE = f"{BEIT3} (beit3_base_patch16_224.pth and its neighbors)"
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


def refseg_name(name: str) -> str | None:
    """Return our name of an official key without prefix; None if it is unknown."""
    if name in SINGLE:
        return SINGLE[name]
    if (match := FFN.fullmatch(name)) and match[3] in IN_FFN:
        return f"layers.{match[1]}.ffn.{EXPERTS[match[2]]}.{IN_FFN[match[3]]}.{match[4]}"
    if (match := LAYER.fullmatch(name)) and match[2] in IN_LAYERS:
        return f"layers.{match[1]}.{IN_LAYERS[match[2]]}.{EXPERTS[match[3]]}.{match[4]}"
    if match := NORM.fullmatch(name):
        return f"norm.{EXPERTS[match[1]]}.{match[2]}"
    return None


def beit3_state_from_official(
    official: Mapping[str, Tensor], *, grid: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert official weights for images of `grid` patches.

    Returns:
        The state dict of `BEiT3Encoder` without its pyramid, and the reason for each key left out.

    Raises:
        CheckpointError: A key with the prefix is unknown.
    """
    state, left_out, unknown = {}, {}, []
    for full, value in official.items():
        key = full.removeprefix("module.")
        if not key.startswith(OFFICIAL_PREFIX):
            left_out[full] = "a head of another task"
        elif (name := key.removeprefix(OFFICIAL_PREFIX)) == MASK_TOKEN:
            left_out[full] = "mask token of pretraining"
        elif (ours := refseg_name(name)) is None:
            unknown.append(full)
        else:
            state[ours] = value
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys are not from BEiT-3: {shown(unknown)}.")
    if not state:
        raise CheckpointError(f"No key starts with {OFFICIAL_PREFIX!r}. Found: {shown(sorted(official))}.")
    if (table := state.get("positions.vision.weight")) is not None:
        side = round((len(table) - PREFIX) ** 0.5)
        if side**2 != len(table) - PREFIX:
            raise CheckpointError(
                f"encoder.embed_positions.A.weight has {len(table)} rows. Expected 3 and a square number."
            )
        state["positions.vision.weight"] = resize_positions(table, grid)
    return state, left_out


def load_official_beit3(encoder: Any, file: str) -> str:
    """Load a file into a `BEiT3Encoder`, except its pyramid. Return what was loaded."""
    convert = partial(beit3_state_from_official, grid=encoder.grid)
    return load_official(encoder, file, owner="BEiT-3", where=WHERE, optional="pyramid.", convert=convert)
