"""Convert official BEiT-3 weights to weights of `BEiT3Encoder`.

Official files have everything under `model`, with the prefix `beit3.`; `.A` is vision, `.B` language. Keys without the
prefix belong to heads of other tasks.
"""

from __future__ import annotations

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
MASK_TOKEN = "vision_embed.mask_token"
RENAMED = (
    ("vision_embed.proj.", "patch_embed."),
    ("vision_embed.cls_token", "class_token"),
    ("encoder.embed_positions.", "positions."),
    ("encoder.layers.", "layers."),
    ("encoder.layer_norm.", "norm."),
    ("self_attn.q_proj.", "query."),
    ("self_attn.k_proj.", "key."),
    ("self_attn.v_proj.", "value."),
    ("self_attn.out_proj.", "out."),
    ("self_attn.inner_attn_ln.", "inner_norm."),
    ("self_attn_layer_norm.", "norm1."),
    ("final_layer_norm.", "norm2."),
    ("ffn_layernorm.", "norm."),
    (".A.", ".vision."),
    (".B.", ".language."),
)


def beit3_state_from_official(
    official: Mapping[str, Tensor], *, grid: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert official weights. Weights with our names, as `refseg convert` writes them, are taken as they are.

    Args:
        official: The weights.
        grid: (h, w) of the patches, to which positions are resized. None keeps them.

    Returns:
        The state dict of `BEiT3Encoder` without its pyramid, and the reason for each key left out. Unknown keys with
        the prefix stay in the state dict.
    """
    state, left_out = {}, {}
    converted = "class_token" in official
    for key, value in official.items():
        name = key.removeprefix("module.")
        if converted:
            state[name] = value
        elif not name.startswith(OFFICIAL_PREFIX):
            left_out[key] = "a head of another task"
        elif (name := name.removeprefix(OFFICIAL_PREFIX)) == MASK_TOKEN:
            left_out[key] = "mask token of pretraining"
        else:
            for theirs, ours in RENAMED:
                name = name.replace(theirs, ours)
            state[name] = value
    if not state:
        raise CheckpointError(f"No key starts with {OFFICIAL_PREFIX!r}. Found: {shown(sorted(official))}.")
    if (table := state.get("positions.vision.weight")) is not None:
        side = round((len(table) - PREFIX) ** 0.5)
        if side**2 != len(table) - PREFIX:
            raise CheckpointError(
                f"encoder.embed_positions.A.weight has {len(table)} rows. Expected 3 and a square number."
            )
        if grid is not None:
            state["positions.vision.weight"] = resize_positions(table, grid)
    return state, left_out


def load_official_beit3(encoder: Any, file: str) -> str:
    """Load a file into a `BEiT3Encoder`, except its pyramid. Return what was loaded."""
    convert = partial(beit3_state_from_official, grid=encoder.grid)
    return load_official(encoder, file, owner="BEiT-3", where=WHERE, optional="pyramid.", convert=convert)


def beit3_keys(state: Mapping[str, Tensor]) -> set[str]:
    """Return our names of all weights, without the pyramid, for as many layers as a converted state dict has."""
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("layers.")), default=0)
    keys = {"class_token", "text_embed.weight", "patch_embed.weight", "patch_embed.bias"}
    for stream in ("vision", "language"):
        parts = [f"norm.{stream}"]
        for layer in range(layers):
            names = ("norm1", "query", "key", "value", "out", "inner_norm", "norm2")
            parts += [f"layers.{layer}.{name}.{stream}" for name in names]
            parts += [f"layers.{layer}.ffn.{stream}.{name}" for name in ("fc1", "norm", "fc2")]
        keys |= {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} | {f"positions.{stream}.weight"}
    return keys
