"""Every word that an expression may hold. Phrases are in lower case and without punctuation: a word is what stands
between two spaces. wording.py takes all its words from the tables here, so that ``word_list`` is closed."""

from collections.abc import Iterator
from typing import Any

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

ADJECTIVES = {
    "size": {"small": ("small", "tiny", "little"), "large": ("large", "big")},
    "texture": {"plain": ("plain",), "striped": ("striped", "stripy")},
    "colour": {
        "red": ("red",),
        "green": ("green",),
        "blue": ("blue",),
        "yellow": ("yellow",),
        "purple": ("purple", "violet"),
        "orange": ("orange",),
        "white": ("white",),
        "black": ("black",),
    },
}
TEXTURE_TAILS = {"striped": "with stripes", "plain": "without stripes"}

# By count; None is "all". The second table is for phrases joined by "and", where a leading adjective must not be
# understood to reach over the next phrase.
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
SINGULAR_DETERMINERS = ("every", "each")  # these take a singular noun though several are meant
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

ANCHOR = "{anchor}"  # where a relation's words take in the anchor's phrase
RELATIONS = {
    "left": ("left of {anchor}", "to the left of {anchor}"),
    "right": ("right of {anchor}", "to the right of {anchor}"),
    "top": ("above {anchor}", "higher than {anchor}"),
    "bottom": ("below {anchor}", "under {anchor}", "lower than {anchor}"),
}
# The same relation told from the other end; singular targets only.
TURNED_RELATIONS = {
    "left": ("with {anchor} to its right", "that has {anchor} on its right"),
    "right": ("with {anchor} to its left", "that has {anchor} on its left"),
    "top": ("with {anchor} below it", "that has {anchor} under it"),
    "bottom": ("with {anchor} above it", "that has {anchor} above it"),
}

# (singular, plural) words before an attribute told after the noun
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
    """Every word the grammar can say, sorted."""
    tables = (
        KIND_NOUNS, ANY_NOUNS, PRONOUN, ADJECTIVES, TEXTURE_TAILS, DETERMINERS, JOINED_DETERMINERS, JOINTS,
        MOST_BEFORE, MOST_AFTER, PLACE_BEFORE, PLACE_AFTER, RELATIONS, TURNED_RELATIONS, CLAUSES, NOT_CLAUSES,
        NOT_BEFORE, EXCEPT, A_KIND,
    )  # fmt: skip
    return sorted({word for string in _strings(tables) for word in string.split()} - {ANCHOR})
