"""Convert a state dict of a text model of transformers to weights of `TextEncoder`, whose layers run in stages."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = re.compile(r"^(module\.|bert\.|roberta\.|distilbert\.|electra\.|text_model\.)+")
RENAMED = (
    ("encoder.layer.", "layers."),  # BERT, RoBERTa
    ("encoder.layers.", "layers."),  # CLIP
    ("transformer.layer.", "layers."),  # DistilBERT
    ("final_layer_norm.", "final_norm."),
)
OLD_NORM = {"gamma": "weight", "beta": "bias"}  # names of BERT's first files
LEFT_OUT = {
    r"embeddings\.position_ids": "buffer, computed",
    r"pooler\..*|text_projection\..*": "pooler, which no method reads",
    r"(cls|lm_head|vocab_\w+|logit_scale).*": "head of another task",
}


def text_state_from_transformers(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Convert the weights of a text model.

    Returns:
        The state dict of `TextEncoder`, the reason for each key left out, and the unknown keys.
    """
    state, left_out, unknown = {}, {}, []
    for key, value in weights.items():
        name = PREFIX.sub("", key)
        reason = next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)
        for theirs, ours in RENAMED:
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        stem, _, kind = name.rpartition(".")
        if reason:
            left_out[key] = reason
        elif name.startswith(("embeddings.", "layers.", "final_norm.")):
            state[f"{stem}.{OLD_NORM.get(kind, kind)}"] = value
        else:
            unknown.append(key)
    return state, left_out, unknown
