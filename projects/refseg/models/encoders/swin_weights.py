"""Convert official Swin weights to weights of `SwinEncoder`.

Names differ, and so does the order of the 4 C channels that patch merging concatenates. The official code concatenates
the neighbors (0, 0), (1, 0), (0, 1), (1, 1) (row offset first) with C channels each. mmdet unfolds: channel by channel,
with the neighbors (0, 0), (0, 1), (1, 0), (1, 1). Weights in the official order load into mmdet's module without an
error, but the model is broken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.official_weights import load_official, shown

WHERE = "https://github.com/microsoft/Swin-Transformer (its model hub has swin_base_patch4_window12_384_22k.pth)"
PREFIXES = ("module.", "backbone.", "encoder.")
RENAMED = (("patch_embed.proj.", "patch_embed.projection."), ("layers.", "stages."))
RENAMED_IN_BLOCKS = ((".attn.", ".attn.w_msa."), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."))
FROM_TRANSFORMERS = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
    ("encoder.layers.", "layers."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.self.", "attn."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm.", "norm."),
    ("classifier.", "head."),
)
BLOCK = r"layers\.\d+\.blocks\.\d+"
LEARNED = re.compile(
    rf"(patch_embed\.(proj|norm)|{BLOCK}\.(norm1|norm2|attn\.(qkv|proj)|mlp\.fc[12])|norm\d)\.(weight|bias)"
    rf"|{BLOCK}\.attn\.relative_position_bias_table|layers\.\d+\.downsample\.(norm\.(weight|bias)|reduction\.weight)"
)
LEFT_OUT = re.compile(rf"{BLOCK}\.(attn_mask|attn\.relative_position_index)|(norm|head)\.(weight|bias)")


def is_swin_key(key: str) -> bool:
    """Return whether an official key without prefix belongs to Swin, and not to a fusion (`layers.0.fusion...`)."""
    return bool(LEARNED.fullmatch(key) or LEFT_OUT.fullmatch(key))


def swin_state_from_official(
    official: Mapping[str, Tensor], *, window_size: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert official weights, with or without the prefixes `backbone.` and `module.`.

    Position tables of another window are resized. Output norms are converted if the source has them.

    Returns:
        The state dict of `SwinEncoder` without buffers, and the keys left out: buffers, the classifier, and its norm.

    Raises:
        CheckpointError: A key is unknown, or a weight is missing.
    """
    known = {without_prefix(key): key for key in official}
    unknown = [key for short, key in known.items() if not is_swin_key(short)]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} keys are not from Swin: {shown(unknown)}. Use a file of the official code, timm, or "
            f"transformers. The official one is at {WHERE}."
        )
    check_complete(known)
    state = {}
    for short, key in known.items():
        if LEARNED.fullmatch(short):
            value = official[key]
            if ".downsample." in short:
                value = from_official_order(value)
            elif short.endswith("relative_position_bias_table"):
                value = resize_table(value, window_size)
            state[refseg_name(short)] = value
    return state, [key for short, key in known.items() if LEFT_OUT.fullmatch(short)]


def to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's or transformers' Swin weights to official names; return others as they are.

    In timm, a patch merging belongs to the stage after it; in the official code, to the stage before. transformers has
    three matrices for query, key, and value, the official code one. All three have the same order of channels.
    """
    state = dict(state)
    if any("attention.self.query" in key for key in state):
        official: dict[str, Tensor] = {}
        for key, value in state.items():
            name = key.removeprefix("swin.")
            for theirs, ours in FROM_TRANSFORMERS:
                name = name.replace(theirs, ours)
            if ".query." in name:  # (C, C) or (C,) each -> (3 C, C) or (3 C,)
                parts = [state[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
                official[name.replace("attn.query.", "attn.qkv.")] = torch.cat(parts)
            elif ".key." not in name and ".value." not in name:
                official[name] = value
        return official
    # timm 0.9 and later
    if "layers.0.downsample.norm.weight" not in state and "layers.1.downsample.norm.weight" in state:
        state = {
            re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample.", key): value
            for key, value in state.items()
        }
    return {key.replace("head.fc.", "head."): value for key, value in state.items()}


def load_official_swin(encoder: Any, file: str) -> str:
    """Load a file of the official code, timm, or transformers into a `SwinEncoder`. Output norms that it lacks stay as
    they are. Return what was loaded."""

    def convert(content: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return swin_state_from_official(to_official_names(content), window_size=encoder.window_size)

    return load_official(encoder, file, owner="Swin", where=WHERE, optional="norm", convert=convert)


def without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def refseg_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    for theirs, ours in RENAMED_IN_BLOCKS:
        name = name.replace(theirs, ours) if ".blocks." in name else name
    return name


def from_official_order(value: Tensor) -> Tensor:
    """Reorder the last dimension from the 4 C official channels to mmdet's order."""
    parts = value.unflatten(-1, (2, 2, -1))  # (..., column offset, row offset, C)
    return parts.movedim(-1, -3).transpose(-1, -2).flatten(-3).contiguous()  # (..., C, row offset, column offset)


def resize_table(table: Tensor, window_size: int) -> Tensor:
    """Resize a position table ((2 W - 1)**2, H) to another window W by bicubic interpolation per head."""
    side, wanted = round(len(table) ** 0.5), 2 * window_size - 1
    if side == wanted:
        return table
    square = table.t().reshape(1, -1, side, side)  # (1, H, 2 W - 1, 2 W - 1)
    square = F.interpolate(square.float(), size=(wanted, wanted), mode="bicubic", align_corners=False)
    return square.flatten(2)[0].t().contiguous().to(table.dtype)


def check_complete(names: Iterable[str]) -> None:
    """Check that all learned weights of all stages and blocks are there, up to the highest numbers found."""
    have = {name for name in names if LEARNED.fullmatch(name)}
    blocks = {tuple(map(int, found)) for name in have for found in re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", name)}
    depths = [
        1 + max((block for other, block in blocks if other == stage), default=0)
        for stage in range(1 + max((stage for stage, _ in blocks), default=0))
    ]
    missing = sorted(official_keys(depths) - have)
    if missing:
        raise CheckpointError(f"{len(missing)} keys of Swin are missing: {shown(missing)}.")


def official_keys(depths: list[int]) -> set[str]:
    """Return the official keys of learned weights, without output norms, for the given blocks per stage."""
    parts = ["patch_embed.proj", "patch_embed.norm"]
    keys = set()
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            parts += [f"{name}.{part}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
            keys.add(f"{name}.attn.relative_position_bias_table")
        if stage < len(depths) - 1:
            parts.append(f"layers.{stage}.downsample.norm")
            keys.add(f"layers.{stage}.downsample.reduction.weight")
    return keys | {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
