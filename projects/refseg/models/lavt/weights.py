"""Convert LAVT's published checkpoints to weights of `LAVT`.

A checkpoint holds `model` (encoder without BERT, decoder) and `bert_model`. The variant `lavt_one` has BERT in `model`
under `text_encoder.`. Every key is converted, or left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from refseg.models.encoders.fused_weights import check_accounted, fused_state_from_official
from refseg.models.encoders.official_weights import published_model

STEPS = {"4": 0, "3": 1, "2": 2}  # decoder step of each official level, coarse to fine
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DECODER = re.compile(r"(conv|bn)([12])_([234])\.(\w+)")


def lavt_state_from_official(
    content: Mapping[str, Any], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        content: The checkpoint.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        The state dict of `LAVT` without computed buffers (`relative_position_index`), and the reason for each key left
        out.

    Raises:
        CheckpointError: The checkpoint has unknown keys, or lacks weights.
    """
    model = published_model(content, "LAVT")
    bert = {key.removeprefix("module."): value for key, value in (content.get("bert_model") or {}).items()}
    bert |= {
        key.removeprefix("text_encoder."): model.pop(key) for key in list(model) if key.startswith("text_encoder.")
    }
    backbone = {key.removeprefix("backbone."): value for key, value in model.items() if key.startswith("backbone.")}
    decoder = {key.removeprefix("classifier."): value for key, value in model.items() if key.startswith("classifier.")}

    encoder = fused_state_from_official(backbone, bert, window_size=window_size, bert_name="bert_model")
    state = {f"encoder.{key}": value for key, value in encoder.state.items()}
    unknown = [key for key in model if not key.startswith(("backbone.", "classifier."))] + encoder.unknown
    for name, value in decoder.items():
        place = _decoder_place(name)
        if place is None:
            unknown.append(f"classifier.{name}")
        else:
            state[place] = value
    expected = {f"encoder.{key}" for key in encoder.expected} | _decoder_keys()
    check_accounted("LAVT", state, expected, unknown)
    return state, encoder.left_out


def _decoder_keys() -> set[str]:
    keys = {"decoder.classify.weight", "decoder.classify.bias"}
    for step in STEPS.values():
        for number in (1, 2):
            keys.add(f"decoder.steps.{step}.conv{number}.weight")
            keys |= {f"decoder.steps.{step}.norm{number}.{kind}" for kind in BATCH_NORM}
    return keys


def _decoder_place(name: str) -> str | None:
    if name.startswith("conv1_1."):
        return name.replace("conv1_1.", "decoder.classify.")
    if not (found := DECODER.fullmatch(name)):
        return None
    kind, number, level, rest = found.groups()
    return f"decoder.steps.{STEPS[level]}.{'conv' if kind == 'conv' else 'norm'}{number}.{rest}"
