"""LAVT's published checkpoints -> the weights of `LAVT`.

A checkpoint holds `model` (encoder without BERT, decoder) and `bert_model`; that of the variant `lavt_one` has BERT in
`model` under `text_encoder.`. Every key goes somewhere or is left out for a reason given here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.swin_weights import is_swin_key, shown, swin_state_from_official

PWAM_PARTS = {
    "vis_project.0": "vision",
    "image_lang_att.f_query.0": "query",
    "image_lang_att.f_key.0": "key",
    "image_lang_att.f_value.0": "value",
    "image_lang_att.W.0": "out",
    "project_mm.0": "project",
}
STEPS = {"4": 0, "3": 1, "2": 2}  # the decoder's levels, coarse to fine
LEFT_OUT_OF_BERT = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
FUSION = re.compile(r"layers\.(\d)\.fusion\.(.+)\.(weight|bias)")
GATE = re.compile(r"layers\.(\d)\.res_gate\.([02])\.weight")
DECODER = re.compile(r"(conv|bn)([12])_([234])\.(\w+)")


def lavt_state_from_official(
    content: Mapping[str, Any], *, window_size: int = 12
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of `LAVT` without its computed buffers (`relative_position_index`), and the keys left out with the
    reason. Unknown and missing keys are errors."""
    if not isinstance(content.get("model"), Mapping):
        raise CheckpointError(f"no LAVT checkpoint: no weights in `model`, only {shown(sorted(map(str, content)))}")
    model = {key.removeprefix("module."): value for key, value in content["model"].items()}
    bert = {key.removeprefix("module."): value for key, value in (content.get("bert_model") or {}).items()}
    bert |= {
        key.removeprefix("text_encoder."): model.pop(key) for key in list(model) if key.startswith("text_encoder.")
    }
    backbone = {key.removeprefix("backbone."): value for key, value in model.items() if key.startswith("backbone.")}
    decoder = {key.removeprefix("classifier."): value for key, value in model.items() if key.startswith("classifier.")}
    unknown = [key for key in model if not key.startswith(("backbone.", "classifier."))]

    swin, swin_left_out = swin_state_from_official(
        {key: value for key, value in backbone.items() if is_swin_key(key)}, window_size=window_size
    )
    state = {f"encoder.vision.{key}": value for key, value in swin.items()}
    left_out = dict.fromkeys((f"backbone.{key}" for key in swin_left_out), "computed")
    last = max((int(found[1]) for key in backbone if (found := re.match(r"layers\.(\d+)\.", key))), default=-1)
    for name, value in backbone.items():
        if is_swin_key(name):
            continue
        place = _fusion_place(name, last)
        if place is None:
            unknown.append(f"backbone.{name}")
        elif place in REASONS:
            left_out[f"backbone.{name}"] = REASONS[place]
        else:
            state[place] = value[..., 0] if value.ndim == 3 else value  # 1x1 convolutions are linear
    for name, value in decoder.items():
        place = _decoder_place(name)
        if place is None:
            unknown.append(f"classifier.{name}")
        else:
            state[place] = value
    for name, value in bert.items():
        if name in LEFT_OUT_OF_BERT:
            left_out[f"bert_model.{name}"] = "unused"
        elif name.startswith(("embeddings.", "encoder.layer.")):
            state["encoder.text." + name.replace("encoder.layer.", "layers.")] = value
        else:
            unknown.append(f"bert_model.{name}")
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys are not LAVT's: {shown(unknown)}")
    missing = sorted(expected_keys(last, state) - set(state))
    if missing:
        raise CheckpointError(f"{len(missing)} of LAVT's weights are missing (by our names): {shown(missing)}")
    return state, left_out


def expected_keys(last: int, state: Mapping[str, Tensor]) -> set[str]:
    """What a LAVT with stages 0 to `last` has besides Swin's own blocks, with as many BERT layers as the state has."""
    keys = {"decoder.classify.weight", "decoder.classify.bias"}
    for stage in range(last + 1):
        fusion = f"encoder.fusions.{stage}"
        keys |= {f"encoder.vision.norm{stage}.{kind}" for kind in ("weight", "bias")}
        keys |= {f"{fusion}.{part}.weight" for part in PWAM_PARTS.values()}
        keys |= {f"{fusion}.{part}.bias" for part in PWAM_PARTS.values() if part not in WITHOUT_BIAS}
        keys |= {f"{fusion}.gate.{layer}.weight" for layer in (0, 2) if stage < last}
    for step in STEPS.values():
        for number in (1, 2):
            keys.add(f"decoder.steps.{step}.conv{number}.weight")
            keys |= {f"decoder.steps.{step}.norm{number}.{kind}" for kind in BATCH_NORM}
    numbers = [int(found[1]) for key in state if (found := re.match(r"encoder\.text\.layers\.(\d+)\.", key))]
    keys |= {f"encoder.text.embeddings.{name}" for name in BERT_EMBEDDINGS}
    for layer in range(max(numbers, default=0) + 1):
        for part in BERT_LAYER:
            keys |= {f"encoder.text.layers.{layer}.{part}.{kind}" for kind in ("weight", "bias")}
    return keys


WITHOUT_BIAS = ("query", "out")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BERT_EMBEDDINGS = (
    *(f"{name}_embeddings.weight" for name in ("word", "position", "token_type")),
    *(f"LayerNorm.{kind}" for kind in ("weight", "bias")),
)
BERT_LAYER = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *(f"{name}.{part}" for name in ("attention.output", "output") for part in ("dense", "LayerNorm")),
    "intermediate.dense",
)


REASONS = {
    "gate": "the gate of the last stage, whose result nothing reads",
    "bias": "a bias that the instance norm after it takes away",
}


def _fusion_place(name: str, last: int) -> str | None:
    """Where a weight of PWAM or of its gate goes; a key of REASONS where it goes nowhere; None if it is unknown."""
    if found := GATE.fullmatch(name):
        stage, layer = found.groups()
        return "gate" if int(stage) == last else f"encoder.fusions.{stage}.gate.{layer}.weight"
    if (found := FUSION.fullmatch(name)) and found[2] in PWAM_PARTS:
        stage, part, kind = found[1], PWAM_PARTS[found[2]], found[3]
        return "bias" if kind == "bias" and part in WITHOUT_BIAS else f"encoder.fusions.{stage}.{part}.{kind}"
    return None


def _decoder_place(name: str) -> str | None:
    if name.startswith("conv1_1."):
        return name.replace("conv1_1.", "decoder.classify.")
    if not (found := DECODER.fullmatch(name)):
        return None
    kind, number, level, rest = found.groups()
    return f"decoder.steps.{STEPS[level]}.{'conv' if kind == 'conv' else 'norm'}{number}.{rest}"
