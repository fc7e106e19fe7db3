"""Convert query decoders in Mask2Former's official names: tables of patterns, and attention in three or two parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class DecoderNames(NamedTuple):
    """Our names by patterns of official ones. A group of a pattern fills the braces of a name.

    Args:
        attentions: `nn.MultiheadAttention` -> `Attention`.
        linear: Modules with weight and bias.
        single: Tensors, by their whole names.
    """

    attentions: dict[str, str]
    linear: dict[str, str]
    single: dict[str, str]


def decoder_state(official: Mapping[str, Tensor], names: DecoderNames) -> tuple[dict[str, Tensor], list[str], set[str]]:
    """Convert a decoder, given without prefix.

    Returns:
        Our state dict, the unknown official keys, and all keys that it should have, for the numbers of blocks found.
    """
    state: dict[str, Tensor] = {}
    unknown = []
    for name, value in official.items():
        parts = _parts(name, value, names)
        state |= parts
        if not parts:
            unknown.append(name)
    places = [*names.linear.values()]
    places += [f"{place}.{part}" for place in names.attentions.values() for part in ("query", "key_value", "out")]
    modules = [place.format(block) for place in places for block in _blocks(place, state)]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return state, unknown, expected | set(names.single.values())


def _blocks(place: str, state: Mapping[str, Tensor]) -> range:
    """Return the numbers that fill the braces of a name, up to the highest one in the state dict."""
    prefix = re.escape(place.partition("{}")[0])
    numbers = [int(found[1]) for key in state if (found := re.match(prefix + r"(\d+)\.", key))]
    return range(1 + max(numbers, default=0)) if "{}" in place else range(1)


def _parts(name: str, value: Tensor, names: DecoderNames) -> dict[str, Tensor]:
    """Convert one official tensor: two tensors if it holds query, key and value, none if it is unknown."""
    if name in names.single:
        return {names.single[name]: value}
    for pattern, place in names.attentions.items():
        if found := re.fullmatch(rf"{pattern}\.(in_proj_|out_proj\.)(weight|bias)", name):
            *number, part, kind = found.groups()
            ours = place.format(*number)
            if part == "out_proj.":
                return {f"{ours}.out.{kind}": value}
            query, key_value = value.split([len(value) // 3, 2 * len(value) // 3])
            return {f"{ours}.query.{kind}": query, f"{ours}.key_value.{kind}": key_value}
    for pattern, place in names.linear.items():
        if found := re.fullmatch(rf"{pattern}\.(weight|bias)", name):
            *number, kind = found.groups()
            return {f"{place.format(*number)}.{kind}": value}
    return {}
