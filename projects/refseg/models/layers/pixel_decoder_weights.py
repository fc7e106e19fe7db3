"""Convert weights of Mask2Former's official pixel decoder, which ReLA's checkpoints contain, for `PixelDecoder`.

`PixelDecoder` has mmdet's names, which are taken as they are. Only names differ: in both, levels go from coarse to
fine, and sampling offsets are ordered by head, level, and point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

FIXED = {
    "transformer.level_embed": "level_encoding.weight",
    "mask_features.weight": "mask_feature.weight",
    "mask_features.bias": "mask_feature.bias",
    "adapter_1.weight": "lateral_convs.0.conv.weight",
    "adapter_1.norm.weight": "lateral_convs.0.gn.weight",
    "adapter_1.norm.bias": "lateral_convs.0.gn.bias",
    "layer_1.weight": "output_convs.0.conv.weight",
    "layer_1.norm.weight": "output_convs.0.gn.weight",
    "layer_1.norm.bias": "output_convs.0.gn.bias",
}
INPUT = re.compile(r"input_proj\.([012])\.([01])\.(weight|bias)")
LAYER = re.compile(r"(?:transformer\.)?encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
LAYER_PARTS = {
    **{
        f"self_attn.{name}": f"self_attn.{name}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    },
    "norm1": "norms.0",
    "linear1": "ffn.layers.0.0",
    "linear2": "ffn.layers.1",
    "norm2": "norms.1",
}


def pixel_decoder_state_from_official(official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], set[str]]:
    """Convert official or mmdet's weights, given without a prefix.

    Returns:
        The state dict of `PixelDecoder`, the unknown official keys, and all keys that the state dict should have, for
        the number of layers found.
    """
    state, unknown = {}, []
    layers = [int(found[1]) for name in official if (found := LAYER.fullmatch(name))]
    keys = _keys(1 + max(layers, default=0))
    for name, value in official.items():
        place = name if name in keys else _place(name)
        if place is None:
            unknown.append(name)
        else:
            state[f"mmdet_decoder.{place}"] = value
    return state, unknown, {f"mmdet_decoder.{key}" for key in keys}


def _place(name: str) -> str | None:
    if found := INPUT.fullmatch(name):
        level, part, kind = found.groups()
        return f"input_convs.{level}.{'gn' if part == '1' else 'conv'}.{kind}"
    if (found := LAYER.fullmatch(name)) and found[2] in LAYER_PARTS:
        return f"encoder.layers.{found[1]}.{LAYER_PARTS[found[2]]}.{found[3]}"
    return FIXED.get(name)


def _keys(num_layers: int) -> set[str]:
    parts = [f"input_convs.{level}.{part}" for level in range(3) for part in ("conv", "gn")]
    parts += [f"encoder.layers.{layer}.{part}" for layer in range(num_layers) for part in LAYER_PARTS.values()]
    return {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} | set(FIXED.values())
