"""Convert CGFormer's published checkpoints to weights of `CGFormer`.

A checkpoint holds `model_state_dict`, with the prefixes `backbone.`, `text_encoder.` and `decoder.`. Every key is
converted, or left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from refseg.models.encoders.fused_weights import check_accounted, fused_state_from_official
from refseg.weights import inner_state

PREFIXES = ("backbone.", "text_encoder.", "decoder.")
AFFINE = ("weight", "bias")
BATCH_NORM = (*AFFINE, "running_mean", "running_var", "num_batches_tracked")
UNUSED = re.compile(r"layers\.[12]\.loadtoken\.(norm|mlp\.fc[12])\.(weight|bias)")
Parts = tuple[tuple[str, str, tuple[str, ...]], ...]  # published modules, ours, and their tensors
READ_WORDS: Parts = (
    ("loadtoken.normq", "norm_token", AFFINE),
    ("loadtoken.normk", "norm_words", AFFINE),
    ("loadtoken.cross_attn.q_proj", "cross_attn_words.query", ("weight",)),
    ("loadtoken.cross_attn.k_proj", "cross_attn_words.key", ("weight",)),
    ("loadtoken.cross_attn.v_proj", "cross_attn_words.value", ("weight",)),
    ("loadtoken.cross_attn.proj", "cross_attn_words.out", AFFINE),
    ("norm", "norm_ffn", AFFINE),
    ("mlp.fc1", "ffn.0", AFFINE),
    ("mlp.fc2", "ffn.2", AFFINE),
)
GROUP_PIXELS: Parts = (
    *(("norm_v", "norm_pixels", AFFINE), ("norm_t", "norm_tokens", AFFINE), ("norm", "norm_ffn", AFFINE)),
    *(("q_proj", "query", AFFINE), ("k_proj", "key", AFFINE), ("v_proj", "value", AFFINE), ("proj", "out", AFFINE)),
    *(("mlp.fc1", "ffn.0", AFFINE), ("mlp.fc2", "ffn.3", AFFINE)),
)
JOIN_LEVELS: Parts = (
    ("0", "conv1", AFFINE),
    ("1", "norm1", BATCH_NORM),
    ("3", "conv2", AFFINE),
    ("4", "norm2", BATCH_NORM),
)
MASK_HEAD: Parts = (
    *(("vis.1.0", "conv1", ("weight",)), ("vis.1.1", "norm1", BATCH_NORM)),
    *(("vis.3.0", "conv2", ("weight",)), ("vis.3.1", "norm2", BATCH_NORM)),
    *(("vis.4", "project", AFFINE), ("txt", "kernel", AFFINE)),
)


def cgformer_state_from_official(
    content: Mapping[str, Any], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a published checkpoint.

    Args:
        content: The checkpoint.
        window_size: Window of the Swin encoder, to which position tables are resized. None keeps them.

    Returns:
        The state dict of `CGFormer` without computed buffers (`relative_position_index`), and the reason for each key
        left out.

    Raises:
        CheckpointError: The checkpoint has unknown keys, or lacks weights.
    """
    model = {key.removeprefix("module."): value for key, value in inner_state(content).items()}
    backbone, bert, decoder = (
        {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
        for prefix in PREFIXES
    )
    encoder = fused_state_from_official(backbone, bert, window_size=window_size, bert_name="text_encoder")
    left_out = encoder.left_out
    state = {f"encoder.{key}": value for key, value in encoder.state.items()}
    unknown = [key for key in model if not key.startswith(PREFIXES)] + encoder.unknown
    names = decoder_names()
    for key, value in decoder.items():
        if key in names:
            state[names[key]] = value
        elif UNUSED.fullmatch(key):
            left_out[f"decoder.{key}"] = "the published code does not use it"
        else:
            unknown.append(f"decoder.{key}")
    expected = {f"encoder.{key}" for key in encoder.expected} | set(names.values())
    check_accounted("CGFormer", state, expected, unknown)

    # Tensors in another form
    state["decoder.mask_head.project.weight"] = state["decoder.mask_head.project.weight"].flatten(1)
    for group in ("group_first", "group_later"):
        state[f"decoder.{group}.log_temperature"] = state[f"decoder.{group}.log_temperature"].reshape(())
    for layer in (0, 1):
        attention = f"decoder.read_words.{layer}.cross_attn_words"
        key_value = [state.pop(f"{attention}.{part}.weight") for part in ("key", "value")]
        state[f"{attention}.key_value.weight"] = torch.cat(key_value)
    for step in (0, 1, 2):
        position = state[f"decoder.positions.{step}"]  # (P, C)
        state[f"decoder.positions.{step}"] = position.T.unflatten(1, (isqrt(len(position)), -1))
        for number, official in ((1, 0), (2, 3)):
            bias = state.pop(f"decoder.joins.{step}.conv{number}.bias")
            mean = f"decoder.joins.{step}.norm{number}.running_mean"
            state[mean] = state[mean] - bias
            left_out[f"decoder.fuses.{step}.fusion.{official}.bias"] = "subtracted from the mean of the following norm"
    return state, left_out


def decoder_names() -> dict[str, str]:
    """Return our names of the decoder's published tensors, before some of them change their form."""
    modules: list[tuple[str, str, Parts]] = [("proj", "mask_head", MASK_HEAD)]
    modules += [(f"fuses.{step}.fusion", f"joins.{step}", JOIN_LEVELS) for step in (0, 1, 2)]
    modules += [(f"layers.{step}", f"read_words.{step - 1}", READ_WORDS) for step in (1, 2)]
    names = {"tokens.weight": "decoder.tokens"}
    names |= {f"layers.{step}.positional_embedding": f"decoder.positions.{step}" for step in (0, 1, 2)}
    for theirs, ours in (("cgattention1", "group_first"), ("cgattention2", "group_later")):
        names[f"{theirs}.tau"] = f"decoder.{ours}.log_temperature"
        modules.append((theirs, ours, GROUP_PIXELS))
    for theirs, ours, parts in modules:
        for official, own, kinds in parts:
            names |= {f"{theirs}.{official}.{kind}": f"decoder.{ours}.{own}.{kind}" for kind in kinds}
    return names
