"""Official Swin weights made from `SwinEncoder`'s: the inverse of the conversion, for tests."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from refseg.models.encoders.swin_weights import is_swin_key, official_name


def swin_state_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of `SwinEncoder` to official names and channel order, without buffers."""
    official = {}
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            continue
        name = official_name(key)
        assert is_swin_key(name), f"{key!r} is not a key of SwinEncoder"
        official[name] = to_official_order(value) if ".downsample." in name else value
    return official


def to_official_order(value: Tensor) -> Tensor:
    """Invert `from_official_order`."""
    parts = value.unflatten(-1, (-1, 2, 2))  # (..., C, row offset, column offset)
    return parts.transpose(-1, -2).movedim(-3, -1).flatten(-3).contiguous()  # (..., column offset, row offset, C)
