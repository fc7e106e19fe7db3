"""Find the referents of RefShapes phrases in a scene, independently of the grammar that generated them."""

import re
from functools import partial

from refseg.refshapes.draw import full_masks

ATTRIBUTES = {
    "kind": "circle:circle circles disc discs;square:square squares box boxes;triangle:triangle triangles;"
    "star:star stars;diamond:diamond diamonds rhombus rhombuses;cross:cross crosses plus pluses",
    "color": "red:red;green:green;blue:blue;yellow:yellow;purple:purple violet;orange:orange;white:white;black:black",
    "size": "small:small tiny little;large:large big",
    "texture": "plain:plain;striped:striped stripy",
    "pose": "upright:upright;tilted:tilted slanted rotated",
}
MEANS = {
    word: (name, entry.split(":")[0])
    for name, table in ATTRIBUTES.items()
    for entry in table.split(";")
    for word in entry.split(":")[1].split()
}
SAYS_NOTHING = {"the", "a", "all", "both", "two", "three", "four", "every", "each"}
SAYS_NOTHING |= {"shape", "shapes", "object", "objects", "thing", "things", "one", "ones"}
SIZE_SIGN = {"largest": 1, "biggest": 1, "smallest": -1, "tiniest": -1}
SIDE_OF = {"upper": "top", "lower": "bottom", "leftmost": "left", "rightmost": "right", "topmost": "top"}
SIDE_OF |= {"highest": "top", "uppermost": "top", "bottommost": "bottom", "lowest": "bottom"}
SIDE_OF |= {side: side for side in ("left", "right", "top", "bottom")}
SUPERLATIVES = {"leftmost", "rightmost", "topmost", "highest", "uppermost", "bottommost", "lowest"}
RELATION = r"(?P<a>.+?) (?:to the )?(?P<r>left of|right of|above|higher than|below|under|lower than) (?P<b>.+)"
TURNED = (
    r"(?P<a>.+?) (?:with|that has) (?P<b>.+) (?P<r>(?:to|on) its right|(?:to|on) its left|below it|under it|above it)"
)
BEYOND = {  # dx, dy from anchor to target
    "left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "higher than": (0, -1), "below": (0, 1),
    "under": (0, 1), "lower than": (0, 1), "its right": (-1, 0), "its left": (1, 0), "below it": (0, -1),
    "under it": (0, -1), "above it": (0, 1),
}  # fmt: skip
ANCHORED = ("relation", "nearest", "inside", "behind")
RANKS = {"first": 1, "second": 2, "third": 3, "fourth": 4}
RANK = rf"(?P<r>{'|'.join(RANKS)})"
FROM = r"(?:counting )?from (?:the )?(?P<s>left|right|top|bottom)"
ORDINALS = (rf"(?:the )?{RANK} (?P<a>.+?) {FROM}", rf"(?P<a>.+?) {RANK} {FROM}")
NEAREST = (
    r"(?:the )?(?:nearest|closest) (?P<a>.+?) to (?P<b>.+)",
    r"(?P<a>.+?) (?:nearest to|closest to|nearest(?! the (?:top|bottom)$)) (?P<b>.+)",
)
DEPTH_WORDS = {
    "inside of": "inside", "inside": "inside", "within": "inside", "in": "inside", "partly behind": "behind",
    "behind": "behind", "partly hidden by": "behind", "in front of": "front", "partly covering": "front",
    "around it": "inside", "in front of it": "behind", "behind it": "front",
}  # fmt: skip
DEPTHS = (
    r"(?P<a>.+?) (?:with|that has) (?P<b>.+) (?P<r>around it|in front of it|behind it)",
    r"(?P<a>.+?) (?P<r>inside of|inside|within|in front of|in(?! the \w+ half)|partly behind|behind|partly hidden by"
    r"|partly covering) (?P<b>.+)",
)


def _covers(scene, over, under):
    """Return whether one shape is drawn over another, and whether it lies completely inside its outline."""
    full = full_masks(scene)
    both = full[over.id] & full[under.id]
    return over.id > under.id and both.any(), (both == full[over.id]).all()


def _has_depth(scene, shape, depth, anchor):
    if depth == "behind":
        return _covers(scene, anchor, shape) == (True, False)
    return _covers(scene, shape, anchor) == (True, depth == "inside")


def read_rank_or_anchor(text, scene):
    """Return the shapes of a phrase of the larger presets, or None for other phrases."""
    for pattern in ORDINALS:
        if match := re.fullmatch(pattern, text):
            shapes = sorted(read_phrase(match["a"], scene), key=lambda s: -_toward(s, match["s"]))
            return shapes[RANKS[match["r"]] - 1 : RANKS[match["r"]]]
    for pattern in (*NEAREST, *DEPTHS):
        if match := re.fullmatch(pattern, text):
            (anchor,) = read_phrase(match["b"], scene) or [None]
            if anchor is None:
                return []
            others = [s for s in read_phrase(match["a"], scene) if s is not anchor]
            if pattern in NEAREST:
                return sorted(others, key=lambda s: (s.x - anchor.x) ** 2 + (s.y - anchor.y) ** 2)[:1]
            return [s for s in others if _has_depth(scene, s, DEPTH_WORDS[match["r"]], anchor)]
    return None


def _toward(shape, side):
    return {"left": -shape.x, "right": shape.x, "top": -shape.y, "bottom": shape.y}[side]


def _signed_radius(shape, sign):
    return sign * shape.radius


def _in_region(shape, sides, scene):
    middle = {"left": -scene.width, "right": scene.width, "top": -scene.height, "bottom": scene.height}
    return all(_toward(shape, side) > middle[side] * 8 for side in sides)


def read_phrase(text, scene):
    """Return the shapes that one noun phrase names."""
    if (shapes := read_rank_or_anchor(text, scene)) is not None:
        return shapes
    for pattern in (TURNED, RELATION):
        if match := re.fullmatch(pattern, text):
            (anchor,) = read_phrase(match["b"], scene) or [None]
            if anchor is None:
                return []
            dx, dy = BEYOND[re.sub(r"^(to|on) ", "", match["r"])]
            beyond = [s for s in read_phrase(match["a"], scene) if (s.x - anchor.x) * dx + (s.y - anchor.y) * dy > 0]
            return [s for s in beyond if s is not anchor]
    if match := re.fullmatch(
        r"(.+) (?:on|in|at)(?: the)? ((?:left|right|top|bottom|upper|lower| )+)( side| half)?", text
    ):
        sides = [SIDE_OF[word] for word in match[2].split()]
        return [s for s in read_phrase(match[1], scene) if _in_region(s, sides, scene)]
    if match := re.fullmatch(r"(.+) (?:farthest|farthest to the|nearest the) (left|right|top|bottom)", text):
        return sorted(read_phrase(match[1], scene), key=lambda s: _toward(s, match[2]))[-1:]
    if match := re.fullmatch(r"(.+) (?:except|(?:that|which) (?:is|are) not) (.+)", text):
        excluded = read_phrase(match[2], scene)
        return [s for s in read_phrase(match[1], scene) if s not in excluded]
    if match := re.fullmatch(r"(.+) (?:that|which) (?:is|are) (.+)", text):
        return [s for s in read_phrase(match[1], scene) if s in read_phrase(match[2], scene)]
    if match := re.fullmatch(r"(.+) (with|without) stripes", text):
        return [s for s in read_phrase(match[1], scene) if (s.texture == "striped") == (match[2] == "with")]
    return read_words(text.split(), scene)


def read_words(words, scene):
    """Read adjectives and a noun. A superlative ranks the shapes that match the other words."""
    shapes, rank, places = list(scene.shapes), None, []
    for before, word in zip([""] + words, words, strict=False):
        if word in MEANS:
            name, value = MEANS[word]
            shapes = [s for s in shapes if (getattr(s, name) == value) != (before == "non")]
        elif word in SUPERLATIVES:
            rank = partial(_toward, side=SIDE_OF[word])
        elif word in SIZE_SIGN:
            rank = partial(_signed_radius, sign=SIZE_SIGN[word])
        elif word in SIDE_OF:
            places.append(SIDE_OF[word])
        else:
            assert word in SAYS_NOTHING or word == "non", word
    shapes = [s for s in shapes if _in_region(s, places, scene)]
    return shapes if rank is None else sorted(shapes, key=rank)[-1:]


def read(text, scene):
    parts = re.split(r" (?:and also|and|as well as) ", text)
    return [s.id for part in parts for s in read_phrase(part, scene)], len(parts)
