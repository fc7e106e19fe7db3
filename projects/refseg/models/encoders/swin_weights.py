"""Convert Swin weights of the official code, timm, transformers and mmdet to weights of `SwinEncoder`.

mmdet's and mmseg's names are ours. In the official code, names differ, and so does the order of the 4 C channels that
patch merging concatenates. The official code concatenates the neighbors (0, 0), (1, 0), (0, 1), (1, 1) (row offset
first) with C channels each. mmdet unfolds: channel by channel, with the neighbors (0, 0), (0, 1), (1, 0), (1, 1).
Weights in the official order load into mmdet's module without an error, but the model is broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.official_weights import load_official, shown

WHERE = "https://github.com/microsoft/Swin-Transformer (its model hub has swin_base_patch4_window12_384_22k.pth)"
PREFIXES = ("module.", "backbone.", "swin.", "encoder.")
RENAMED = (("patch_embed.proj.", "patch_embed.projection."), ("layers.", "stages."))
RENAMED_IN_BLOCKS = ((".attn.", ".attn.w_msa."), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."))
FROM_TRANSFORMERS = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
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
LEFT_OUT = {
    re.compile(rf"{BLOCK}\.(attn_mask|attn\.relative_position_index)"): "buffer, computed from the window",
    re.compile(r"(norm|head)\.(weight|bias)"): "classifier of ImageNet, and the norm before it",
}


def is_swin_key(key: str) -> bool:
    """Return whether an official key without prefix belongs to Swin, and not to a fusion (`layers.0.fusion...`)."""
    return bool(LEARNED.fullmatch(key) or reason_of(key))


def reason_of(key: str) -> str | None:
    """Return why an official key is left out, or None."""
    return next((reason for pattern, reason in LEFT_OUT.items() if pattern.fullmatch(key)), None)


def swin_state_from_official(
    official: Mapping[str, Tensor], *, window_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert weights with the names of the official code, timm, transformers, or mmdet.

    Prefixes (`backbone.`, `module.`, ...) may be there. Output norms are converted if the source has them.

    Args:
        official: The weights.
        window_size: Position tables of another window are resized. None keeps them.

    Returns:
        The state dict of `SwinEncoder` without buffers, and the reason for each key left out.

    Raises:
        CheckpointError: A key is unknown, or a weight is missing.
    """
    state, left_out, unknown = {}, {}, []
    for key, (name, value) in official_names(official).items():
        if LEARNED.fullmatch(name):
            if name.endswith("relative_position_bias_table") and window_size is not None:
                value = resize_table(value, window_size)
            state[refseg_name(name)] = value
        elif reason := reason_of(name):
            left_out[key] = reason
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} keys are not from Swin: {shown(unknown)}. Use a file of the official code, timm, "
            "transformers, or mmdet; from a whole model's checkpoint, `refseg convert FILE --to encoder` takes the "
            f"encoder. The official file is at {WHERE}."
        )
    check_complete(state)
    return state, left_out


def official_names(weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Return, by the source's key, the official name without prefix, and the tensor with mmdet's order of channels.

    Query, key and value of transformers are one matrix here, under the query's key. In timm 0.9 and later, a patch
    merging belongs to the stage after it; in the official code, to the stage before.
    """
    short = {without_prefix(key): key for key in weights}
    from_mmdet = any(".attn.w_msa." in name for name in short)
    later_merging = "layers.0.downsample.norm.weight" not in short and "layers.1.downsample.norm.weight" in short
    named = {}
    for name, key in short.items():
        value = weights[key]
        if ".attention.self.query." in name:  # (C, C) or (C,) each -> (3 C, C) or (3 C,)
            value = torch.cat([weights[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")])
            name = name.replace(".attention.self.query.", ".attn.qkv.")
        elif re.search(r"\.attention\.self\.(key|value)\.", name):
            continue
        for theirs, ours in FROM_TRANSFORMERS:
            name = name.replace(theirs, ours)
        name = re.sub(r"^hidden_states_norms\.stage(\d)\.", lambda found: f"norm{int(found[1]) - 1}.", name)
        name = name.replace("head.fc.", "head.")  # timm's classifier
        if later_merging:
            name = re.sub(
                r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample.", name
            )
        if from_mmdet:
            name = official_name(name)
        elif ".downsample." in name:
            value = from_official_order(value)
        named[key] = (name, value)
    return named


def load_official_swin(encoder: Any, file: str) -> str:
    """Load a file of the official code, timm, transformers, or mmdet into a `SwinEncoder`. Output norms that it lacks
    stay as they are. Return what was loaded."""
    convert = partial(swin_state_from_official, window_size=encoder.window_size)
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


def official_name(name: str) -> str:
    """Invert `refseg_name`."""
    for theirs, ours in RENAMED_IN_BLOCKS:
        name = name.replace(ours, theirs) if ".blocks." in name else name
    for theirs, ours in RENAMED:
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
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


def check_complete(state: Mapping[str, Tensor]) -> None:
    """Check that all learned weights of all stages and blocks are there, up to the highest numbers found."""
    blocks = {
        tuple(map(int, found)) for name in state for found in re.findall(r"^stages\.(\d+)\.blocks\.(\d+)\.", name)
    }
    depths = [
        1 + max((block for other, block in blocks if other == stage), default=0)
        for stage in range(1 + max((stage for stage, _ in blocks), default=0))
    ]
    missing = sorted(key for key in official_keys(depths) if refseg_name(key) not in state)
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
