"""All words of RefShapes. wording.py takes its words from these tables only, so ``word_list`` is complete.

Phrases are in lower case and have no punctuation; spaces separate the words.
"""

from collections.abc import Iterator
from typing import Any

from refseg.refshapes.scene import COLORS

# (singular, plural)
KIND_NOUNS = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
}
ANY_NOUNS = (("shape", "shapes"), ("object", "objects"), ("thing", "things"))
PRONOUN = ("one", "ones")

ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "tiny", "little"), "large": ("large", "big")},
    "texture": {"plain": ("plain",), "striped": ("striped", "stripy")},
    "pose": {"upright": ("upright",), "tilted": ("tilted", "slanted", "rotated")},
    "color": {color: (color,) for color in COLORS} | {"purple": ("purple", "violet")},
}
UNSAID = ("plain", "upright")  # not said without need
TEXTURE_TAILS = {"striped": "with stripes", "plain": "without stripes"}

# By count; None is "all". The second table is for phrases joined by "and", where a leading adjective must not seem to
# apply to the next phrase too.
DETERMINERS = {
    1: ("the", "the", ""),
    2: ("the two", "two", "both"),
    3: ("the three", "three", "all three"),
    4: ("the four", "four", "all four"),
    None: ("all", "all", "all the", "the", "", "every", "each"),
}
JOINED_DETERMINERS = {
    1: ("the",),
    2: ("the two",),
    3: ("the three",),
    4: ("the four",),
    None: ("all the", "the", "every"),
}
SINGULAR_DETERMINERS = ("every", "each")  # followed by a singular noun, though several are meant
JOINTS = ("and", "and also", "as well as")

MOST_BEFORE = {
    "left": ("leftmost",),
    "right": ("rightmost",),
    "top": ("topmost", "highest", "uppermost"),
    "bottom": ("bottommost", "lowest"),
    "large": ("largest", "biggest"),
    "small": ("smallest", "tiniest"),
}
MOST_AFTER = {
    "left": ("farthest left", "farthest to the left"),
    "right": ("farthest right", "farthest to the right"),
    "top": ("nearest the top",),
    "bottom": ("nearest the bottom",),
}
PLACE_BEFORE = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
}
PLACE_AFTER = {
    "left": ("on the left", "on left", "on the left side", "in the left half"),
    "right": ("on the right", "on right", "on the right side", "in the right half"),
    "top": ("at the top", "at top", "in the top half", "in the upper half"),
    "bottom": ("at the bottom", "at bottom", "in the bottom half", "in the lower half"),
    "top left": ("at the top left", "at upper left"),
    "top right": ("at the top right", "at upper right"),
    "bottom left": ("at the bottom left", "at lower left"),
    "bottom right": ("at the bottom right", "at lower right"),
}

ANCHOR = "{anchor}"  # replaced by the anchor's phrase
RELATIONS = {
    "left": ("left of {anchor}", "to the left of {anchor}"),
    "right": ("right of {anchor}", "to the right of {anchor}"),
    "top": ("above {anchor}", "higher than {anchor}"),
    "bottom": ("below {anchor}", "under {anchor}", "lower than {anchor}"),
    "inside": ("inside {anchor}", "in {anchor}", "within {anchor}", "inside of {anchor}"),
    "behind": ("behind {anchor}", "partly behind {anchor}", "partly hidden by {anchor}"),
    "front": ("in front of {anchor}", "partly covering {anchor}"),
    "nearest": ("nearest to {anchor}", "closest to {anchor}", "nearest {anchor}"),
}
# The same relations, worded from the other end; singular targets only.
TURNED_RELATIONS = {
    "left": ("with {anchor} to its right", "that has {anchor} on its right"),
    "right": ("with {anchor} to its left", "that has {anchor} on its left"),
    "top": ("with {anchor} below it", "that has {anchor} under it"),
    "bottom": ("with {anchor} above it", "that has {anchor} above it"),
    "inside": ("with {anchor} around it", "that has {anchor} around it"),
    "behind": ("with {anchor} in front of it", "that has {anchor} in front of it"),
    "front": ("with {anchor} behind it", "that has {anchor} behind it"),
}
NEAREST_BEFORE = ("nearest", "closest")  # "the closest star to the red square"
NEAREST_JOINT = "to"

RANKS = {1: ("first",), 2: ("second",), 3: ("third",), 4: ("fourth",)}
FROM_SIDES = {  # between a rank and a noun
    "left": ("from the left", "from left", "counting from the left"),
    "right": ("from the right", "from right", "counting from the right"),
    "top": ("from the top", "from top", "counting from the top"),
    "bottom": ("from the bottom", "from bottom", "counting from the bottom"),
}

# Long sentences: a full clause after the noun.
LONG_CLAUSES = ("that is", "which is")
LONG_SEEN = ("that is", "which is", "that can be seen", "that is located")  # before places and sides
LONG_MOST = {
    "left": ("farthest to the left", "the leftmost one"),
    "right": ("farthest to the right", "the rightmost one"),
    "top": ("nearest to the top of the picture", "the highest one"),
    "bottom": ("nearest to the bottom of the picture", "the lowest one"),
    "large": ("the largest one", "the biggest of them"),
    "small": ("the smallest one", "the smallest of them"),
}
LONG_PLACES = {
    "left": ("on the left side of the picture", "in the left half of the picture"),
    "right": ("on the right side of the picture", "in the right half of the picture"),
    "top": ("in the upper half of the picture", "in the top half of the image"),
    "bottom": ("in the lower half of the picture", "in the bottom half of the image"),
    "top left": ("in the top left part of the picture", "in the upper left quarter of the image"),
    "top right": ("in the top right part of the picture", "in the upper right quarter of the image"),
    "bottom left": ("in the bottom left part of the picture", "in the lower left quarter of the image"),
    "bottom right": ("in the bottom right part of the picture", "in the lower right quarter of the image"),
}
LONG_RELATIONS = {
    "left": ("to the left of {anchor}", "on the left side of {anchor}"),
    "right": ("to the right of {anchor}", "on the right side of {anchor}"),
    "top": ("above {anchor}", "higher up than {anchor}"),
    "bottom": ("below {anchor}", "lower down than {anchor}"),
    "inside": ("inside {anchor}", "in the inside of {anchor}"),
    "behind": ("behind {anchor}", "partly hidden by {anchor}"),
    "front": ("in front of {anchor}", "partly covering {anchor}"),
    "nearest": ("the closest one to {anchor}", "the one nearest to {anchor}"),
}
LONG_RANK = "the {rank} one {side}"

# (singular, plural) words before an attribute that follows the noun
CLAUSES = (("that is", "that are"), ("which is", "which are"))
NOT_CLAUSES = (("that is not", "that are not"), ("which is not", "which are not"))
NOT_BEFORE = "non"
EXCEPT = "except"
A_KIND = "a"  # "that is not a circle"


def _strings(table: Any) -> Iterator[str]:
    if isinstance(table, str):
        yield table
    else:
        for part in table.values() if isinstance(table, dict) else table:
            yield from _strings(part)


def word_list() -> list[str]:
    """Return all words, sorted."""
    tables = [value for name, value in globals().items() if name.isupper() and name != "COLORS"]
    return sorted({word for string in _strings(tables) for word in string.split() if "{" not in word})
