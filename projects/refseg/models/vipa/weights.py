"""Convert CrossVLT's published checkpoints to the parts of VIPA's encoder that are the same.

VIPA's encoder differs from CrossVLT's in six points (docs/models.md), so a file has its Swin with output norms, BERT's
embeddings, and BERT's first six layers, which read no pixels. All else has another place or shape, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.official_weights import shown
from refseg.models.encoders.swin_weights import swin_state_from_official
from refseg.models.encoders.text_weights import text_state_from_transformers

SWIN = re.compile(r"backbone\.(\d)\.(patch_embed\..+|norm\d\..+|layers\.((?:blocks|downsample)\..+))")
TEXT = "lang_stage1."
LEFT_OUT = {
    r"backbone\.\d\.layers\.(attn[12]|linear[12])\..+": "fusion of CrossVLT, which VIPA's encoder has in another form",
    r"lang_stage[234]\.(crossattention|intermediate|output|layer)\..+": "words that have read CrossVLT's fused pixels",
    r"(backbone\.\d\.layers|lang_stage1\.encoder|lang_stage[234])\.proj\..+|temp": "alignment loss of CrossVLT",
    r"classifier\..+": "decoder of CrossVLT",
}


def crossvlt_state(
    weights: Mapping[str, Tensor], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        weights: The weights.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        Names of `VIPA` with their tensors, and the reason for each key left out.

    Raises:
        CheckpointError: The file has unknown keys, or lacks weights.
    """
    swin, source_of, text, left_out, unknown = {}, {}, {}, {}, []
    for key, value in weights.items():
        name = key.removeprefix("module.")
        reason = next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)
        if reason:
            left_out[key] = reason
        elif found := SWIN.fullmatch(name):
            stage, part, in_layer = found.groups()
            official = f"layers.{stage}.{in_layer}" if in_layer else part
            swin[official], source_of[official] = value, key
        elif name.startswith(TEXT):
            text[name.removeprefix(TEXT)] = value
        else:
            unknown.append(key)
    vision, vision_left_out = swin_state_from_official(swin, window_size=window_size)
    words, words_left_out, unknown_words = text_state_from_transformers(text)
    if unknown := unknown + [TEXT + name for name in unknown_words]:
        raise CheckpointError(f"{len(unknown)} keys are not from CrossVLT: {shown(unknown)}.")
    state = {f"encoder.vision.{name}": value for name, value in vision.items()}
    state |= {f"encoder.text.{name}": value for name, value in words.items()}
    left_out |= {source_of[name]: reason for name, reason in vision_left_out.items()}
    return state, left_out | {TEXT + name: reason for name, reason in words_left_out.items()}
