"""Convert ReLA's published checkpoints (detectron2) to weights of `ReLA`.

A checkpoint holds `model`, with the prefixes `backbone.`, `text_encoder.`, `sem_seg_head.pixel_decoder.` and
`sem_seg_head.predictor.`. Every key is converted, or left out with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from refseg.models.encoders.fused_weights import check_accounted, fused_state_from_official
from refseg.models.encoders.official_weights import published_model
from refseg.models.layers.decoder_weights import DecoderNames, decoder_state
from refseg.models.layers.pixel_decoder_weights import pixel_decoder_state_from_official

PREFIXES = ("backbone.", "text_encoder.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
PREDICTOR = DecoderNames(
    attentions={
        r"RIA_layers\.(\d+)\.multihead_attn": "decoder.region_image.{}.cross_attn_pixels",
        r"RLA_vision\.(\d+)\.self_attn": "decoder.region_region.{}.self_attn",
        r"RLA_lang_att\.multihead_attn": "decoder.region_language.cross_attn_words",
    },
    linear={
        r"RIA_layers\.(\d+)\.norm": "decoder.region_image.{}.norm",
        r"RLA_vision\.(\d+)\.norm": "decoder.region_region.{}.norm_self",
        r"RLA_lang_att\.norm": "decoder.region_language.norm",
        r"transformer_ffn_layers\.(\d+)\.linear1": "decoder.region_region.{}.ffn.0",
        r"transformer_ffn_layers\.(\d+)\.linear2": "decoder.region_region.{}.ffn.2",
        r"transformer_ffn_layers\.(\d+)\.norm": "decoder.region_region.{}.norm_ffn",
        r"decoder_norm": "heads.norm",
        r"mask_embed\.layers\.0": "heads.mask.0",
        r"mask_embed\.layers\.1": "heads.mask.2",
        r"mask_embed\.layers\.2": "heads.mask.4",
        r"minimap_embed": "heads.minimap",
        r"nt_embed\.layers\.0": "heads.no_target.0",
        r"nt_embed\.layers\.1": "heads.no_target.2",
    },
    single={
        "query_feat.weight": "decoder.queries",
        "static_query.weight": "decoder.queries",  # its name in older files
        "query_embed.weight": "decoder.query_position",
        "level_embed.weight": "decoder.level_embed",
        "lang_proj.weight": "decoder.project_words.weight",
        "lang_weight": "decoder.region_language.weight",
    },
)


def rela_state_from_official(
    content: Mapping[str, Any], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        content: The checkpoint.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        The state dict of `ReLA` without computed buffers (`relative_position_index`), and the reason for each key left
        out.

    Raises:
        CheckpointError: The checkpoint has unknown keys, or lacks weights.
    """
    model = published_model(content, "ReLA")
    backbone, bert, pixel_decoder, predictor = (
        {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
        for prefix in PREFIXES
    )
    encoder = fused_state_from_official(backbone, bert, window_size=window_size, bert_name="text_encoder")
    pixels, unknown_pixels, expected_pixels = pixel_decoder_state_from_official(pixel_decoder)
    regions, unknown_regions, expected_regions = decoder_state(predictor, PREDICTOR)
    state = {f"encoder.{key}": value for key, value in encoder.state.items()}
    state |= {f"pixel_decoder.{key}": value for key, value in pixels.items()} | regions
    unknown = [key for key in model if not key.startswith(PREFIXES)] + encoder.unknown
    unknown += [f"sem_seg_head.pixel_decoder.{key}" for key in unknown_pixels]
    unknown += [f"sem_seg_head.predictor.{key}" for key in unknown_regions]
    expected = {f"encoder.{key}" for key in encoder.expected} | {f"pixel_decoder.{key}" for key in expected_pixels}
    check_accounted("ReLA", state, expected | expected_regions, unknown)
    return state, encoder.left_out
