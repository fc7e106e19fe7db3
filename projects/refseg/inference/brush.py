"""Label Studio's brush masks: its run lengths of an image of four channels, as a list of bytes.

The bits, highest first: 32 for the number of values, 5 for a value's width less one, four times 4 for the widths of
lengths less one; then runs: 1 for a run of one value (0 for values that are written out, which are not needed here), 2
for which of the widths the length has, the length less one, and the value.
"""

from __future__ import annotations

import numpy as np

VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
CHANNELS = 4  # red, green, blue, alpha: all the same here


def encode_brush(mask: np.ndarray) -> list[int]:
    """(H, W) bool -> bytes; mask pixels are 255 in all channels."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = CHANNELS * np.diff(ends, prepend=0)
    bits = [f"{CHANNELS * flat.size:032b}{VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in LENGTH_BITS)]
    for length, inside in zip(lengths.tolist(), flat[ends - 1].tolist(), strict=True):
        bits += _run(length, 255 if inside else 0)
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


def _run(length: int, value: int) -> list[str]:
    """The bits of a run, cut into parts that the longest width holds."""
    parts = []
    while length:
        part = min(length, 2 ** LENGTH_BITS[-1])
        which = next(index for index, width in enumerate(LENGTH_BITS) if part <= 2**width)
        parts.append(f"1{which:02b}{part - 1:0{LENGTH_BITS[which]}b}{value:0{VALUE_BITS}b}")
        length -= part
    return parts
