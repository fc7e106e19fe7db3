"""Convert DMMI's published checkpoints to weights of `DMMI`.

A checkpoint has LAVT's form: `model` (encoder without BERT, decoders, contrast) and `bert_model`. Every key is
converted, or left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from refseg.models.dmmi.fusion import NGRAMS, PATCHES
from refseg.models.encoders.fused_weights import check_accounted, fused_state_from_official
from refseg.models.encoders.official_weights import published_model
from refseg.models.layers.decoder_weights import DecoderNames, decoder_state

UNUSED = re.compile(r"classifier\.(transformer_fusion[12]|lan_func)\.decoder_layer\..+")
SCORES = re.compile(r"layers\.(\d)\.fusion\.image_lang_att\.(vis|lan)_weight")
FUSION = {
    "vis_project.0": "vision",
    "project_mm.0": "project",
    "W_l.0": "update",
    "image_lang_att.f_value.0": "value",
    "image_lang_att.f_value_v.0": "pixel_value",
    "image_lang_att.W.0": "out",
    "image_lang_att.W2.0": "word_out",
}
for _number, (_patch, _ngram) in enumerate((("11", "11"), ("33", "21"), ("55", "31"))):
    for _theirs, _pixels, _words in (
        ("f_query.0", "reduce", "shrink"),
        ("f_query2.0", "convs", "ngrams"),
        ("f_key.0", "key", "pixel_key"),
    ):
        FUSION[f"image_lang_att.refineimg{_patch}.{_theirs}"] = f"{_pixels}.{_number}"
        FUSION[f"image_lang_att.refinelan{_ngram}.{_theirs}"] = f"{_words}.{_number}"
WITHOUT_BIAS = re.compile(r"out|pixel_value|(reduce|convs|pixel_key)\.\d")


def dmmi_state_from_official(
    content: Mapping[str, Any], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        content: The checkpoint.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        The state dict of `DMMI` without computed buffers (`relative_position_index`), and the reason for each key left
        out.

    Raises:
        CheckpointError: The checkpoint has unknown keys, or lacks weights. Those with a ResNet have other keys.
    """
    model = published_model(content, "DMMI")
    bert = {key.removeprefix("module."): value for key, value in (content.get("bert_model") or {}).items()}
    backbone, scores, decoder = {}, {}, {}
    left_out: dict[str, str] = {}
    for key, value in model.items():
        name = key.removeprefix("backbone.")
        if found := SCORES.fullmatch(name):
            scores[f"encoder.fusions.{found[1]}.{'patch' if found[2] == 'vis' else 'ngram'}_scores"] = value
        elif key.startswith("backbone."):
            backbone[name.replace(".W_l.", ".fusion.W_l.")] = value
        elif UNUSED.fullmatch(key):
            left_out[key] = "template whose copy the published code uses"
        else:
            decoder[key] = value[..., 0] if value.ndim == 3 else value

    encoder = fused_state_from_official(
        backbone, bert, window_size=window_size, bert_name="bert_model", parts=FUSION, without_bias=WITHOUT_BIAS
    )
    decoders, unknown, expected = decoder_state(decoder, decoder_names())
    state = {f"encoder.{key}": value for key, value in encoder.state.items()} | scores | decoders
    expected |= {f"encoder.{key}" for key in encoder.expected}
    expected |= {f"encoder.fusions.{stage}.{kind}_scores" for stage in range(4) for kind in ("patch", "ngram")}
    check_accounted("DMMI", state, expected, encoder.unknown + unknown)

    # Neighborhoods that are unfolded in the published code become convolutions
    for stage in range(4):
        for number, (side, n) in enumerate(zip(PATCHES, NGRAMS, strict=True)):
            conv, ngram = (f"encoder.fusions.{stage}.{part}.{number}.weight" for part in ("convs", "ngrams"))
            state[conv] = state[conv].unflatten(1, (-1, side, side))
            state[ngram] = state[ngram].unflatten(1, (-1, n))
    return state, left_out | encoder.left_out


def decoder_names() -> DecoderNames:
    """Return our names of both decoders and of the contrast."""
    linear = {
        r"classifier\.conv1_1": "decoder.classify",
        r"classifier\.crossfuse1\.linear": "contrast.merge.0",
        r"classifier\.crossfuse2\.linear": "contrast.merge.1",
        r"contrastive\.align_lan\.0": "contrast.project",
    }
    attentions, single = {}, {}
    for theirs, ours in (
        ("transformer_fusion1", "decoder.layers.0"),
        ("transformer_fusion2", "decoder.layers.1"),
        ("lan_func", "text_decoder.layer"),
    ):
        layer = rf"classifier\.{theirs}\.transformer_model\.layers\.0"
        attentions[rf"{layer}\.self_attn"] = f"{ours}.self_attn"
        attentions[rf"{layer}\.multihead_attn"] = f"{ours}.cross_attn"
        linear |= {rf"{layer}\.linear1": f"{ours}.ffn.0", rf"{layer}\.linear2": f"{ours}.ffn.3"}
        linear |= {rf"{layer}\.norm{n}": f"{ours}.norm{n}" for n in (1, 2, 3)}
    convs = [("lan_func.conv1", "lan_func.bn1", "text_decoder.conv", "text_decoder.norm")]
    for step, level in enumerate((4, 3, 2)):
        for n in (1, 2):
            join = f"decoder.joins.{step}"
            convs.append((f"conv{n}_{level}", f"bn{n}_{level}", f"{join}.conv{n}", f"{join}.norm{n}"))
    for conv, norm, our_conv, our_norm in convs:
        single[f"classifier.{conv}.weight"] = f"{our_conv}.weight"
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            single[f"classifier.{norm}.{kind}"] = f"{our_norm}.{kind}"
    return DecoderNames(attentions, linear, single)
