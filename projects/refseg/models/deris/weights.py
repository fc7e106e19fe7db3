"""Convert DeRIS's published checkpoints to weights of `DeRIS`, and Mask2Former's for its perception branch.

A checkpoint holds `state_dict`, with the prefixes `understanding_branch.`, `perception_branch.` and `head.`. Every key
is converted, or left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.models.encoders.beit3_weights import beit3_keys, beit3_state_from_official
from refseg.models.encoders.fused_weights import check_accounted
from refseg.models.encoders.official_weights import shown
from refseg.models.encoders.swin_weights import swin_state_from_official
from refseg.models.layers.decoder_weights import DecoderNames, decoder_state
from refseg.models.layers.pixel_decoder_weights import pixel_decoder_state_from_official
from refseg.models.mask2former_weights import mask2former_state
from refseg.paths import data_path
from refseg.weights import inner_state, read_checkpoint, weights_file

COGNITION, PERCEPTION = "understanding_branch.", "perception_branch."
PREDICTOR = PERCEPTION + "predictor."
LEFT_OUT = {
    r"head\.criterion\.empty_weight": "weights of the loss of relevance, which are in the config",
    COGNITION + r"logit_embed\.\w+": "nothing reads its result",
    PERCEPTION + r"(nt_embed|perception_query_embed)\.\w+": "the published code does not use it",
    PREDICTOR + r"(cls_embed|box_embed\.layers\.\d)\.\w+": "its loss has no weight, so it was not trained",
    PREDICTOR + r"SEG_proj\.layers\.\d\.\w+": "the published code does not use it",
    PREDICTOR + r"Q2TCA\.\d+\.cross_attn\.mapmlp\.\d\.\w+": "the published code does not use it",
}
FINEST_BIASES = {
    "adapter_1": "pixel_decoder.mmdet_decoder.lateral_convs.0.conv.bias",
    "layer_1": "pixel_decoder.mmdet_decoder.output_convs.0.conv.bias",
}
# Our names of the query decoder, whose official names are both branches'
BLOCK, LOOP, READER = "decoder.blocks.{}.", "decoder.loopbacks.{}.", "decoder.readers.{}."
READER_LAYER = r"roialigner\.TextCorrelation\.layers\.(\d+)\."
DECODER = DecoderNames(
    attentions={
        r"transformer_cross_attention_layers\.(\d+)\.multihead_attn": BLOCK + "cross_attn_pixels",
        r"transformer_self_attention_layers\.(\d+)\.self_attn": BLOCK + "self_attn",
        r"query_SA\.(\d+)\.self_attn": LOOP + "self_attn",
        r"Q2TCA\.(\d+)\.self_attn": LOOP + "read_words.self_attn",
        r"Q2TCA\.(\d+)\.cross_attn": LOOP + "read_words.cross_attn_words",
        READER_LAYER + r"attentions\.0\.attn": READER + "self_attn",
        READER_LAYER + r"attentions\.1\.attn": READER + "cross_attn_words",
    },
    linear={
        r"transformer_cross_attention_layers\.(\d+)\.norm": BLOCK + "norm_pixels",
        r"transformer_self_attention_layers\.(\d+)\.norm": BLOCK + "norm_self",
        r"transformer_ffn_layers\.(\d+)\.linear1": BLOCK + "ffn.0",
        r"transformer_ffn_layers\.(\d+)\.linear2": BLOCK + "ffn.2",
        r"transformer_ffn_layers\.(\d+)\.norm": BLOCK + "norm_ffn",
        r"query_SA\.(\d+)\.norm": LOOP + "norm",
        r"Q2TCA\.(\d+)\.norm2": LOOP + "read_words.norm_self",
        r"Q2TCA\.(\d+)\.norm1": LOOP + "read_words.norm_words",
        r"Q2TCA\.(\d+)\.linear1": LOOP + "read_words.ffn.0",
        r"Q2TCA\.(\d+)\.linear2": LOOP + "read_words.ffn.3",
        r"Q2TCA\.(\d+)\.norm3": LOOP + "read_words.norm_ffn",
        r"refer_proj\.(\d+)": LOOP + "join",
        READER_LAYER + r"norms\.0": READER + "norm_self",
        READER_LAYER + r"norms\.1": READER + "norm_words",
        READER_LAYER + r"norms\.2": READER + "norm_ffn",
        READER_LAYER + r"ffns\.0\.layers\.0\.0": READER + "ffn.0",
        READER_LAYER + r"ffns\.0\.layers\.1": READER + "ffn.3",
        r"roialigner\.TextCorrelation\.post_norm_layer": "decoder.norm_read",
        r"nt_embed": "decoder.existence",
        r"perception_embed": "decoder.project_queries",
        r"text_embed": "decoder.project_words",
        r"vis_embed": "decoder.project_patches",
        r"decoder_norm": "decoder.norm",
        r"mask_embed\.layers\.0": "decoder.mask.0",
        r"mask_embed\.layers\.1": "decoder.mask.2",
        r"mask_embed\.layers\.2": "decoder.mask.4",
        r"SEG_cls": "decoder.relevance",
        r"channel_proj_conv": "decoder.join_pixels",
    },
    single={
        "init_query.weight": "decoder.queries",
        "query_embed.weight": "decoder.query_position",
        "level_embed.weight": "decoder.level_embed",
    },
)


def deris_state_from_official(
    content: Mapping[str, Any], *, window_size: int | None = None, grid: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        content: The checkpoint.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.
        grid: (h, w) of BEiT-3's patches, to which positions are resized. None keeps them.

    Returns:
        The state dict of `DeRIS` without computed buffers (`relative_position_index`), and the reason for each key left
        out.

    Raises:
        CheckpointError: The checkpoint has unknown keys, or lacks weights.
    """
    model = {key.removeprefix("module."): value for key, value in inner_state(content).items()}
    left_out = {}
    for key in model:
        if reason := next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, key)), None):
            left_out[key] = reason
    beit3, swin, pixels, predictor, cognition = (
        {key: key.removeprefix(prefix) for key in model if key.startswith(prefix) and key not in left_out}
        for prefix in (
            *(COGNITION + "vis_enc.", PERCEPTION + "hier_vision_encoder.", PERCEPTION + "pixel_decoder."),
            *(PREDICTOR, COGNITION),
        )
    )
    cognition = {key: name for key, name in cognition.items() if key not in beit3}
    places = {**beit3, **swin, **pixels, **predictor, **cognition}
    unknown = [key for key in model if key not in places and key not in left_out]

    # BEiT-3 and Swin
    encoder, encoder_left_out = beit3_state_from_official(_named(model, beit3), grid=grid)
    vision, vision_left_out = swin_state_from_official(_named(model, swin), window_size=window_size)
    left_out |= {f"{COGNITION}vis_enc.{key}": reason for key, reason in encoder_left_out.items()}
    left_out |= {f"{PERCEPTION}hier_vision_encoder.{key}": reason for key, reason in vision_left_out.items()}
    expected = {f"encoder.{key}" for key in beit3_keys(encoder)}
    expected |= {f"vision.norm{stage}.{kind}" for stage in range(4) for kind in ("weight", "bias")}
    state = {f"encoder.{key}": value for key, value in encoder.items()}
    unknown += [key for key in state if key not in expected]
    state |= {f"vision.{key}": value for key, value in vision.items()}

    # Pixel decoder: the finest level's convolutions have a bias, and with their norms the names of a sequence
    keys = {
        re.sub(r"^(adapter_1|layer_1)\.([01])\.", lambda found: f"{found[1]}.{'norm.' * int(found[2])}", name): key
        for key, name in pixels.items()
    }
    biases = {name: keys.pop(f"{theirs}.bias", None) for theirs, name in FINEST_BIASES.items()}
    state |= {name: model[key] for name, key in biases.items() if key is not None}
    decoded, unknown_pixels, expected_pixels = pixel_decoder_state_from_official(
        {name: model[key] for name, key in keys.items()}
    )
    state |= {f"pixel_decoder.{key}": value for key, value in decoded.items()}
    expected |= {f"pixel_decoder.{key}" for key in expected_pixels} | set(biases)
    unknown += [keys[name] for name in unknown_pixels]

    # Query decoder
    official = _whole_attentions(_named(model, predictor | cognition))
    queries, unknown_queries, expected_queries = decoder_state(official, DECODER)
    state |= queries
    unknown += [key for key, name in (predictor | cognition).items() if name in unknown_queries]
    check_accounted("DeRIS", state, expected | expected_queries, unknown)
    join = state["decoder.join_pixels.weight"]
    state["decoder.join_pixels.weight"], state["decoder.join_patches.weight"] = join.chunk(2, 1)
    return state, left_out


def _named(model: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: model[key] for key, name in names.items()}


def _whole_attentions(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename attentions with separate projections to those of PyTorch, which have one of three parts."""
    whole = {}
    for name, value in official.items():
        if found := re.fullmatch(r"(Q2TCA\.\d+\.cross_attn)\.([qkv]|proj)\.(weight|bias)", name):
            attention, part, kind = found.groups()
            parts = [official.get(f"{attention}.{one}.{kind}") for one in "qkv"]
            if part == "proj":
                whole[f"{attention}.out_proj.{kind}"] = value
            elif all(one is not None for one in parts):
                whole[f"{attention}.in_proj_{kind}"] = torch.cat(parts)
        else:
            whole[name] = value
    return whole


def load_perception(model: nn.Module, file: str) -> str:
    """Load Mask2Former's published weights into the perception branch of a `DeRIS`. Return what was loaded.

    Of its queries, the first ones' positions are taken, and of its blocks, the first ones, as in the published code.

    Raises:
        CheckpointError: There is no such file, or its weights do not fit.
    """
    path = weights_file(data_path(file))
    expected = model.state_dict()
    vision: Any = model.vision
    try:
        content = inner_state(read_checkpoint(path))
        official, _ = mask2former_state(content, window_size=getattr(vision, "window_size", None))
        state = {}
        for name, value in official.items():
            name = name.replace("encoder.vision.", "vision.").replace("heads.", "decoder.")
            if name == "decoder.query_position":
                value = value[: len(expected[name])]
            if name != "decoder.queries" and name in expected:
                state[name] = value
        if wrong := [name for name, value in state.items() if value.shape != expected[name].shape]:
            raise CheckpointError(f"{len(wrong)} tensors have another shape in the model: {shown(wrong)}")
        parts = ("vision.", "pixel_decoder.", "decoder.blocks.")
        needed = {name for name, _ in model.named_parameters() if name.startswith(parts)} - {*FINEST_BIASES.values()}
        lacks = sorted(needed - set(state))
        if lacks:
            raise CheckpointError(f"{len(lacks)} weights of the perception branch are missing: {shown(lacks)}")
    except CheckpointError as error:
        raise CheckpointError(f"model.pretrained: {path} (Mask2Former): {error}") from None
    model.load_state_dict(state, strict=False)
    return f"DeRIS: {len(state)} tensors of the perception branch loaded from {path}"
