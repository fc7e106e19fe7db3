"""Convert the published encoders of LAVT, ReLA, CGFormer and DMMI (Swin with a fusion, and BERT) to `FusedEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.official_weights import shown
from refseg.models.encoders.swin_weights import is_swin_key, swin_state_from_official
from refseg.models.encoders.text_weights import text_state_from_transformers

PWAM_PARTS = {
    "vis_project.0": "vision",
    "image_lang_att.f_query.0": "query",
    "image_lang_att.f_key.0": "key",
    "image_lang_att.f_value.0": "value",
    "image_lang_att.W.0": "out",
    "project_mm.0": "project",
}
PWAM_WITHOUT_BIAS = re.compile("query|out")
FUSION = re.compile(r"layers\.(\d)\.(?:pwam_)?fusion\.(.+)\.(weight|bias)")  # pwam_: CGFormer's names
GATE = re.compile(r"layers\.(\d)\.(?:res|pwam)_gate\.([02])\.weight")
REASONS = {
    "gate": "gate of the last stage, whose output is unused",
    "bias": "bias that the following instance norm cancels",
}
BERT_EMBEDDINGS = (
    *(f"{name}_embeddings.weight" for name in ("word", "position", "token_type")),
    *(f"LayerNorm.{kind}" for kind in ("weight", "bias")),
)
BERT_LAYER = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *(f"{name}.{part}" for name in ("attention.output", "output") for part in ("dense", "LayerNorm")),
    "intermediate.dense",
)


class Converted(NamedTuple):
    """Converted weights.

    `state` has our names, `left_out` the reason for each key left out, `unknown` the keys that nothing knows, and
    `expected` the names that the state must have besides Swin's blocks, which are checked before.
    """

    state: dict[str, Tensor]
    left_out: dict[str, str]
    unknown: list[str]
    expected: set[str]


def fused_state_from_official(
    backbone: Mapping[str, Tensor],
    bert: Mapping[str, Tensor],
    *,
    window_size: int | None,
    bert_name: str,
    parts: Mapping[str, str] = PWAM_PARTS,
    without_bias: re.Pattern = PWAM_WITHOUT_BIAS,
) -> Converted:
    """Convert the weights of a published encoder.

    Args:
        backbone: Official weights of Swin and the fusion, without prefix.
        bert: Official weights of BERT, without prefix.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.
        bert_name: Name of BERT in reported keys.
        parts: Our name of each part of the fusion.
        without_bias: Our names of the parts whose bias is left out.
    """
    swin, swin_left_out = swin_state_from_official(
        {key: value for key, value in backbone.items() if is_swin_key(key)}, window_size=window_size
    )
    state = {f"vision.{key}": value for key, value in swin.items()}
    left_out = {f"backbone.{key}": reason for key, reason in swin_left_out.items()}
    unknown = []
    last = max((int(found[1]) for key in backbone if (found := re.match(r"layers\.(\d+)\.", key))), default=-1)
    for name, value in backbone.items():
        if is_swin_key(name):
            continue
        place = _fusion_place(name, last, parts, without_bias)
        if place is None:
            unknown.append(f"backbone.{name}")
        elif place in REASONS:
            left_out[f"backbone.{name}"] = REASONS[place]
        else:
            state[place] = value[..., 0] if value.ndim == 3 else value  # 1x1 convolutions are linear
    text, text_left_out, text_unknown = text_state_from_transformers(bert)
    state |= {f"text.{key}": value for key, value in text.items()}
    left_out |= {f"{bert_name}.{key}": reason for key, reason in text_left_out.items()}
    unknown += [f"{bert_name}.{key}" for key in text_unknown]
    return Converted(state, left_out, unknown, _expected_keys(last, state, parts, without_bias))


def check_accounted(owner: str, state: Mapping[str, Tensor], expected: set[str], unknown: list[str]) -> None:
    """Raise CheckpointError for unknown keys, and for expected names that the state lacks."""
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys are not from {owner}: {shown(unknown)}.")
    missing = sorted(expected - set(state))
    if missing:
        raise CheckpointError(f"{len(missing)} weights of {owner} are missing (refseg's names): {shown(missing)}.")


def _expected_keys(
    last: int, state: Mapping[str, Tensor], parts: Mapping[str, str], without_bias: re.Pattern
) -> set[str]:
    """Return names of output norms and fusions of stages 0 to `last`, and of as many BERT layers as the state has."""
    keys = set()
    for stage in range(last + 1):
        fusion = f"fusions.{stage}"
        keys |= {f"vision.norm{stage}.{kind}" for kind in ("weight", "bias")}
        keys |= {f"{fusion}.{part}.weight" for part in parts.values()}
        keys |= {f"{fusion}.{part}.bias" for part in parts.values() if not without_bias.fullmatch(part)}
        keys |= {f"{fusion}.gate.{layer}.weight" for layer in (0, 2) if stage < last}
    numbers = [int(found[1]) for key in state if (found := re.match(r"text\.layers\.(\d+)\.", key))]
    keys |= {f"text.embeddings.{name}" for name in BERT_EMBEDDINGS}
    for layer in range(max(numbers, default=0) + 1):
        for part in BERT_LAYER:
            keys |= {f"text.layers.{layer}.{part}.{kind}" for kind in ("weight", "bias")}
    return keys


def _fusion_place(name: str, last: int, parts: Mapping[str, str], without_bias: re.Pattern) -> str | None:
    """Return our name of a weight of the fusion or its gate, a key of REASONS if it is left out, or None if unknown."""
    if found := GATE.fullmatch(name):
        stage, layer = found.groups()
        return "gate" if int(stage) == last else f"fusions.{stage}.gate.{layer}.weight"
    if (found := FUSION.fullmatch(name)) and found[2] in parts:
        stage, part, kind = found[1], parts[found[2]], found[3]
        return "bias" if kind == "bias" and without_bias.fullmatch(part) else f"fusions.{stage}.{part}.{kind}"
    return None
