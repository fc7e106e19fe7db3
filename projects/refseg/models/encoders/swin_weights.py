"""Official Swin weights <-> `SwinEncoder`'s.

Two things differ: names, and the order of the 4 C channels that patch merging concatenates. The official code has the
neighbours (0, 0), (1, 0), (0, 1), (1, 1) (row offset first) one after the other, each with its C channels; mmdet
unfolds, which has the channels one after the other, each with its neighbours (0, 0), (0, 1), (1, 0), (1, 1). Weights
with the official order load into mmdet's module without an error, and spoil the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.paths import data_path

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
LEARNT = re.compile(
    rf"(patch_embed\.(proj|norm)|{BLOCK}\.(norm1|norm2|attn\.(qkv|proj)|mlp\.fc[12])|norm\d)\.(weight|bias)"
    rf"|{BLOCK}\.attn\.relative_position_bias_table|layers\.\d+\.downsample\.(norm\.(weight|bias)|reduction\.weight)"
)
LEFT_OUT = re.compile(rf"{BLOCK}\.(attn_mask|attn\.relative_position_index)|(norm|head)\.(weight|bias)")


def is_swin_key(key: str) -> bool:
    """Whether an official key, without prefix, is one of Swin's; a fusion's `layers.0.fusion...` is not."""
    return bool(LEARNT.fullmatch(key) or LEFT_OUT.fullmatch(key))


def swin_state_from_official(
    official: Mapping[str, Tensor], *, window_size: int
) -> tuple[dict[str, Tensor], list[str]]:
    """`SwinEncoder`'s state (without buffers) from official weights, with or without `backbone.` and `module.`; and the
    keys left out on purpose: buffers, the classifier and the norm before it.

    Position tables of another window are resized. Output norms are taken where the source has them. A key that is not
    Swin's is an error, and so is a gap.
    """
    known = {without_prefix(key): key for key in official}
    unknown = [key for short, key in known.items() if not is_swin_key(short)]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} keys are not Swin's: {shown(unknown)}. Files of the official code, timm, and transformers "
            f"are read; the official one is at {WHERE}"
        )
    check_complete(known)
    state = {}
    for short, key in known.items():
        if LEARNT.fullmatch(short):
            state[own_name(short)] = convert(short, official[key], window_size)
    return state, [key for short, key in known.items() if LEFT_OUT.fullmatch(short)]


def swin_state_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: official names and channel order. Buffers, which are computed, are left out."""
    official = {}
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            continue
        name = official_name(key)
        if not LEARNT.fullmatch(name):
            raise CheckpointError(f"{key} is not a key of SwinEncoder")
        official[name] = to_official_order(value) if ".downsample." in name else value
    return official


def to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's or transformers' Swin weights under the official names; others as they are.

    timm counts each patch merging to the stage after it, the official code to the one before. transformers has query,
    key, and value apart, which the official code has in one matrix. The order of channels is the same in all three.
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
    if (
        "layers.0.downsample.norm.weight" not in state and "layers.1.downsample.norm.weight" in state
    ):  # timm 0.9 and later
        state = {
            re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample.", key): value
            for key, value in state.items()
        }
    return {key.replace("head.fc.", "head."): value for key, value in state.items()}


def load_official_swin(encoder: Any, file: str) -> list[str]:
    """Load a file of the official code, timm, or transformers into a `SwinEncoder`. Output norms that it lacks stay as
    they are. Return the keys left out."""
    from refseg.apis.runner import read_checkpoint

    path = data_path(file)
    if not path.is_file():
        raise CheckpointError(
            f"no Swin weights at {path}. Official ones: {WHERE}. Or set pretrained=None, to train from random weights."
        )
    try:
        state, left_out = swin_state_from_official(
            to_official_names(inner_state(read_checkpoint(path))), window_size=encoder.window_size
        )
        check_fits(state, encoder)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    encoder.load_state_dict(state, strict=False)
    return left_out


def inner_state(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of a checkpoint, which are under `model`, `state_dict`, or at the top."""
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            return inner_state(content[name])
    return content


def without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def own_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    for theirs, ours in RENAMED_IN_BLOCKS:
        name = name.replace(theirs, ours) if ".blocks." in name else name
    return name


def official_name(name: str) -> str:
    for theirs, ours in RENAMED_IN_BLOCKS:
        name = name.replace(ours, theirs) if ".blocks." in name else name
    for theirs, ours in RENAMED:
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
    return name


def convert(name: str, value: Tensor, window_size: int) -> Tensor:
    if ".downsample." in name:
        return from_official_order(value)
    if name.endswith("relative_position_bias_table"):
        return resize_table(value, window_size)
    return value


def from_official_order(value: Tensor) -> Tensor:
    """The last dimension, 4 C official channels, in mmdet's order."""
    parts = value.unflatten(-1, (2, 2, -1))  # (..., column offset, row offset, C)
    return parts.movedim(-1, -3).transpose(-1, -2).flatten(-3).contiguous()  # (..., C, row offset, column offset)


def to_official_order(value: Tensor) -> Tensor:
    """The inverse of `from_official_order`."""
    parts = value.unflatten(-1, (-1, 2, 2))  # (..., C, row offset, column offset)
    return parts.transpose(-1, -2).movedim(-3, -1).flatten(-3).contiguous()  # (..., column offset, row offset, C)


def resize_table(table: Tensor, window_size: int) -> Tensor:
    """A position table ((2 W - 1)**2, H) for another window W, bicubic, head by head."""
    side, wanted = round(len(table) ** 0.5), 2 * window_size - 1
    if side == wanted:
        return table
    square = table.t().reshape(1, -1, side, side)  # (1, H, 2 W - 1, 2 W - 1)
    square = F.interpolate(square.float(), size=(wanted, wanted), mode="bicubic", align_corners=False)
    return square.flatten(2)[0].t().contiguous().to(table.dtype)


def check_complete(names: Iterable[str]) -> None:
    """All learnt weights of every stage and block that the names speak of, without gaps in the numbering."""
    have = {name for name in names if LEARNT.fullmatch(name)}
    blocks = {tuple(map(int, found)) for name in have for found in re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", name)}
    depths = [
        1 + max((block for other, block in blocks if other == stage), default=0)
        for stage in range(1 + max((stage for stage, _ in blocks), default=0))
    ]
    missing = sorted(official_keys(depths) - have)
    if missing:
        raise CheckpointError(f"{len(missing)} of Swin's keys are missing: {shown(missing)}")


def official_keys(depths: list[int]) -> set[str]:
    """The official keys of learnt weights, without output norms, of a Swin with that many blocks per stage."""
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


def check_fits(state: dict[str, Tensor], encoder: nn.Module) -> None:
    """Every weight of the encoder but the output norms is there, in its shape; spare output norms are taken out."""
    own = {name: weight for name, weight in encoder.state_dict().items() if not name.endswith("position_index")}
    for name in [name for name in state if name.startswith("norm") and name not in own]:
        del state[name]
    missing = [name for name in own if name not in state and not name.startswith("norm")]
    extra = [name for name in state if name not in own]
    shapes = [name for name in state if name in own and state[name].shape != own[name].shape]
    for what, names in (("missing", missing), ("too many", extra), ("of another shape", shapes)):
        if names:
            raise CheckpointError(f"weights of another Swin than this encoder's: {len(names)} {what}: {shown(names)}")


def shown(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
