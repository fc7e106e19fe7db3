"""Convert Mask2Former's published weights to the parts of `InstAlign` that are the same. DeRIS starts from them, too.

Three layouts have the same modules: detectron2's (the official one), transformers', and mmdet's. The latter two are
renamed to the first. InstAlign gets the Swin encoder, the pixel decoder, the queries with their positions, the
decoder's attention to pixels and to queries with its feed-forward networks, and the mask head. Mask2Former has no
words, so the text encoder, the attention between queries and words, relevance, and "nothing here" are not in the file.
That InstAlign can start from them is our choice, not the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.fused_weights import check_accounted
from refseg.models.encoders.swin_weights import swin_state_from_official
from refseg.models.layers.decoder_weights import DecoderNames, decoder_state
from refseg.models.layers.pixel_decoder_weights import pixel_decoder_state_from_official

PIXELS, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
BLOCK, ATTENTION, SELF, FFN = (
    r"decoder\.layers\.(\d+)\.",
    r"transformer_cross_attention_layers.\1.",
    r"transformer_self_attention_layers.\1.",
    r"transformer_ffn_layers.\1.",
)
# Steps from other names to detectron2's, each a pattern and its replacement. Those from transformers change none of
# detectron2's own names.
FROM_TRANSFORMERS = (
    (r"^model\.pixel_level_module\.encoder\.", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", PIXELS),
    (r"^model\.transformer_module\.", PREDICTOR),
    (r"^class_predictor\.", PREDICTOR + "class_embed."),
    (r"pixel_decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (r"pixel_decoder\.(level_embed|encoder\.)", r"pixel_decoder.transformer.\1"),
    (r"pixel_decoder\.mask_projection\.", "pixel_decoder.mask_features."),
    (r"pixel_decoder\.(adapter_1|layer_1)\.0\.", r"pixel_decoder.\1."),
    (r"pixel_decoder\.(adapter_1|layer_1)\.1\.", r"pixel_decoder.\1.norm."),
    (r"(encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(encoder\.layers\.\d+\.)fc([12])\.", r"\1linear\2."),
    (r"(encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"queries_embedder\.", "query_embed."),
    (r"queries_features\.", "query_feat."),
    (r"decoder\.layernorm\.", "decoder_norm."),
    (r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"mask_embed.layers.\1."),
    (BLOCK + r"cross_attn\.", ATTENTION + "multihead_attn."),
    (BLOCK + r"cross_attn_layer_norm\.", ATTENTION + "norm."),
    (BLOCK + r"self_attn\.", SELF + "self_attn."),
    (BLOCK + r"self_attn_layer_norm\.", SELF + "norm."),
    (BLOCK + r"fc([12])\.", FFN + r"linear\2."),
    (BLOCK + r"final_layer_norm\.", FFN + "norm."),
)
FROM_MMDET = (
    (r"^panoptic_head\.pixel_decoder\.", PIXELS),
    (r"^panoptic_head\.", PREDICTOR),
    (r"cls_embed\.", "class_embed."),
    (r"mask_embed\.(\d)\.", lambda found: f"mask_embed.layers.{int(found[1]) // 2}."),
    (r"transformer_decoder\.post_norm\.", "decoder_norm."),
    (r"transformer_" + BLOCK + r"cross_attn\.attn\.", ATTENTION + "multihead_attn."),
    (r"transformer_" + BLOCK + r"self_attn\.attn\.", SELF + "self_attn."),
    (r"transformer_" + BLOCK + r"ffn\.layers\.0\.0\.", FFN + "linear1."),
    (r"transformer_" + BLOCK + r"ffn\.layers\.1\.", FFN + "linear2."),
    (r"transformer_" + BLOCK + r"norms\.0\.", ATTENTION + "norm."),
    (r"transformer_" + BLOCK + r"norms\.1\.", SELF + "norm."),
    (r"transformer_" + BLOCK + r"norms\.2\.", FFN + "norm."),
)
QUERIES = DecoderNames(
    attentions={
        r"transformer_cross_attention_layers\.(\d+)\.multihead_attn": "decoder.blocks.{}.cross_attn_pixels",
        r"transformer_self_attention_layers\.(\d+)\.self_attn": "decoder.blocks.{}.self_attn",
    },
    linear={
        r"transformer_cross_attention_layers\.(\d+)\.norm": "decoder.blocks.{}.norm_pixels",
        r"transformer_self_attention_layers\.(\d+)\.norm": "decoder.blocks.{}.norm_self",
        r"transformer_ffn_layers\.(\d+)\.linear1": "decoder.blocks.{}.ffn.0",
        r"transformer_ffn_layers\.(\d+)\.linear2": "decoder.blocks.{}.ffn.2",
        r"transformer_ffn_layers\.(\d+)\.norm": "decoder.blocks.{}.norm_ffn",
        r"decoder_norm": "heads.norm",
        r"mask_embed\.layers\.0": "heads.mask.0",
        r"mask_embed\.layers\.1": "heads.mask.2",
        r"mask_embed\.layers\.2": "heads.mask.4",
    },
    single={
        "query_feat.weight": "decoder.queries",
        "static_query.weight": "decoder.queries",  # its name in older files
        "query_embed.weight": "decoder.query_position",
        "level_embed.weight": "decoder.level_embed",
    },
)
LEFT_OUT = {
    r"sem_seg_head\.predictor\.class_embed\..*": "COCO's classes; InstAlign has a relevance instead",
    r"(criterion|panoptic_head\.loss_cls)\..*": "weights of the loss of classes",
    r"pixel_(mean|std)|data_preprocessor\..*": "buffer of the preprocessing",
}


def mask2former_state(
    weights: Mapping[str, Tensor], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published Mask2Former, in detectron2's, transformers', or mmdet's layout.

    Args:
        weights: The weights.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        Names of `InstAlign` with their tensors, and the reason for each key left out. Backbones other than Swin are
        left out.

    Raises:
        CheckpointError: The file has unknown keys, or lacks weights.
    """
    official, left_out = {}, {}
    backbone, source_of = {}, {}
    from_mmdet = any(key.removeprefix("module.").startswith("panoptic_head.") for key in weights)
    for key, value in weights.items():
        name = key.removeprefix("module.")
        for pattern, replacement in FROM_MMDET if from_mmdet else FROM_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if found := re.fullmatch(r"(.+\.self_attn)\.q_proj\.(weight|bias)", name):  # (C, C) -> (3 C, C)
            name = f"{found[1]}.in_proj_{found[2]}"
            value = torch.cat([weights[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
        elif re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        if reason := next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)), None):
            left_out[key] = reason
        elif name.startswith("backbone."):
            backbone[name], source_of[name] = value, key
        else:
            official[name], source_of[name] = value, key
    state = {}
    try:
        swin, swin_left_out = swin_state_from_official(backbone, window_size=window_size)
        state = {f"encoder.vision.{name}": value for name, value in swin.items()}
        left_out |= {source_of[name]: reason for name, reason in swin_left_out.items()}
    except CheckpointError:
        if any("blocks.0." in name for name in backbone):  # a damaged Swin
            raise
        left_out |= dict.fromkeys((source_of[name] for name in backbone), "a backbone other than Swin")
    pixels, unknown_pixels, expected = pixel_decoder_state_from_official(_below(official, PIXELS))
    queries, unknown_queries, expected_queries = decoder_state(_below(official, PREDICTOR), QUERIES)
    state |= {f"pixel_decoder.{name}": value for name, value in pixels.items()} | queries
    unknown = [PIXELS + name for name in unknown_pixels] + [PREDICTOR + name for name in unknown_queries]
    unknown += [name for name in official if not name.startswith((PIXELS, PREDICTOR))]
    expected_queries |= {f"pixel_decoder.{name}" for name in expected}
    check_accounted("Mask2Former", state, expected_queries, [source_of[name] for name in unknown])
    return state, left_out


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
