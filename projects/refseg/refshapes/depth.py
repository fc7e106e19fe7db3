"""What lies inside, behind and in front of what: from the full masks of the shapes and the order they are drawn in.

Three-valued like all of meaning.py: 1 yes, -1 no, 0 people could disagree.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from refseg.refshapes.draw import full_masks, visible_masks
from refseg.refshapes.scene import Scene

HIDDEN_PERCENT = 10  # of the lower shape must be seen to be hidden by the upper one

DEPTHS = ("inside", "behind", "front")


@dataclass(frozen=True)
class Contact:
    """Two shapes that overlap. ``hidden_percent``: the part of the lower that the visible part of the upper hides."""

    upper_within: bool  # the upper one's full mask lies wholly in that of the lower
    lower_within: bool
    hidden_percent: int
    told_apart: bool  # of different colors, so that one can see which is in front


@lru_cache(maxsize=8)
def contacts(scene: Scene) -> dict[tuple[int, int], Contact]:
    """By the ids of the lower and the upper shape, for each two shapes that share pixels."""
    full = full_masks(scene)
    visible = visible_masks(full)
    found = {}
    for upper in scene.shapes:
        for lower in scene.shapes[: upper.id]:
            both = full[lower.id] & full[upper.id]
            shared = int(np.count_nonzero(both))
            if shared:
                area = int(np.count_nonzero(full[lower.id]))
                found[lower.id, upper.id] = Contact(
                    upper_within=shared == int(np.count_nonzero(full[upper.id])),
                    lower_within=shared == area,
                    hidden_percent=int(np.count_nonzero(full[lower.id] & visible[upper.id])) * 100 // area,
                    told_apart=lower.color != upper.color,
                )
    return found


def judge_depth(i: int, depth: str, anchor: int, scene: Scene) -> int:
    """Whether shape ``i`` is inside, behind or in front ("front") of the anchor."""
    contact = contacts(scene).get((min(i, anchor), max(i, anchor)))
    if contact is None:
        return -1
    if depth == "inside":
        if not contact.upper_within or not contact.told_apart:
            return 0
        return 1 if i > anchor else -1  # what lies around the anchor is not in it
    clear = contact.told_apart and contact.hidden_percent >= HIDDEN_PERCENT
    if not clear or contact.upper_within or contact.lower_within:
        return 0
    return 1 if (i < anchor) == (depth == "behind") else -1


def clear_pairs(scene: Scene, depth: str) -> list[tuple[int, int]]:
    """All (shape, anchor) of which a depth is clearly true."""
    pairs = [pair for lower, upper in contacts(scene) for pair in ((lower, upper), (upper, lower))]
    return [(i, anchor) for i, anchor in pairs if judge_depth(i, depth, anchor, scene) == 1]
