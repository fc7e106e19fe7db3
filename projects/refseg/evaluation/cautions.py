"""What a protocol does to data that it was not made for, in words. Each function takes the rows and how many masks were
resized to the protocol's grid, and returns "" where there is nothing to say."""

from __future__ import annotations

import numpy as np

from refseg.evaluation.rows import Rows


def no_target_counts_as_zero(rows: Rows, resized: int) -> str:
    none = np.count_nonzero(~rows.has_target)
    return f"{none:,} expressions without target count as IoU 0, whatever is answered" if none else ""


def one_target_only(rows: Rows, resized: int) -> str:
    others = np.count_nonzero(rows.num_targets != 1)
    return f"{others:,} expressions with no target or several are left out" if others else ""


def targets_without_pixels(rows: Rows, resized: int) -> str:
    empty = np.count_nonzero(rows.has_target & (rows.target == 0))
    if not empty:
        return ""
    return (
        f"{empty:,} expressions have a target without a pixel (crowd regions only, or too small for the grid): their "
        "IoU is 0 whatever is answered"
    )


def objects_of_both_kinds(rows: Rows, resized: int) -> str:
    unit, target = rows.unit, rows.has_target
    if np.intersect1d(unit[target], unit[~target]).size or not len(rows):
        return ""
    return (
        "no object has expressions with a target and such without, so rIoU and mRR do not say what R-RefCOCO's do; "
        "rows of a JSONL file that belong together need the same object_id (docs/data.md)"
    )


def thin_masks_vanish(rows: Rows, resized: int) -> str:
    if not resized:
        return ""
    return (
        "whether a mask is empty is decided on the grid; one that is one pixel wide may have vanished when it was "
        "resized, and counts as empty"
    )
