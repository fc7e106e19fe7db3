"""Meanings of expressions: typed forms that are judged on a scene and, in wording.py, put into words.

Judging is three-valued. A shape is referred to (1), is not (-1), or is a borderline case (0), such as "left of" when it
is hardly farther left. A meaning with a borderline case is ``unclear`` on that scene and is never used, so every
expression that is used has exactly one right answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt

import numpy as np

from refseg.refshapes.draw import full_masks, visible_masks
from refseg.refshapes.scene import UNIT, VALUES, Scene, Shape

SIDES = ("left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
DEPTHS = ("inside", "behind", "front")
LAST_RANK = 4  # "the fourth star from the left"
OPPOSITE = {
    "left": "right", "right": "left", "top": "bottom", "bottom": "top", "large": "small", "small": "large",
    "behind": "front", "front": "behind",
}  # fmt: skip
HIDDEN_PERCENT = 10  # of the lower shape that the upper one must hide
AXES = {  # attribute of a shape, and its sign toward a side or size
    "left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1),
    "large": ("radius", 1), "small": ("radius", -1),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The ids of the shapes referred to, in scene order. It is ``unclear`` where people could disagree about them."""

    ids: tuple[int, ...] = ()
    unclear: bool = False


UNCLEAR = Verdict(unclear=True)


@dataclass(frozen=True)
class Match:
    """Shapes with the given attributes and, for a negation, without one attribute."""

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    pose: str | None = None
    without: tuple[str, str] | None = None  # ("color", "red"): not red

    @property
    def of(self) -> "Match":
        """The match itself. Every head has the attribute ``of``, the match that it narrows down."""
        return self

    @cached_property
    def given(self) -> dict[str, str]:
        """The required attributes, by name."""
        return {name: value for name in VALUES if (value := getattr(self, name)) is not None}

    def shapes(self, scene: Scene) -> list[Shape]:
        """Return the shapes that match."""
        return [
            shape
            for shape in scene.shapes
            if all(getattr(shape, name) == value for name, value in self.given.items())
            and (self.without is None or getattr(shape, self.without[0]) != self.without[1])
        ]

    @property
    def sensible(self) -> bool:
        """False for the pose of a circle, which has none, and for "upright shapes", which may or may not include it."""
        pose = dict([self.without]).get("pose", self.pose) if self.without else self.pose
        return pose is None or (self.kind != "circle" and (self.kind is not None or pose == "tilted"))

    def judge(self, scene: Scene) -> Verdict:
        return Verdict(tuple(shape.id for shape in self.shapes(scene)))


@dataclass(frozen=True)
class Most:
    """The one match farthest to a side of SIDES, or the largest or smallest ("large", "small") by radius.

    Its center must be the farthest by the margin, and its outer edge the farthest too. Radii must differ by a quarter.
    """

    of: Match
    end: str

    def judge(self, scene: Scene) -> Verdict:
        shapes = self.of.shapes(scene)
        if len(shapes) < 2:
            return Verdict(tuple(shape.id for shape in shapes))
        second, first = sorted(shapes, key=lambda shape: _reach(shape, self.end))[-2:]
        if self.end in ("large", "small"):
            radii = sorted((first.radius, second.radius))
            return Verdict((first.id,)) if radii[1] * 100 >= radii[0] * 125 else UNCLEAR
        leads = _reach(first, self.end) - _reach(second, self.end) >= scene.margin
        outermost = max(_reach(shape, self.end) + shape.radius for shape in shapes)
        return Verdict((first.id,)) if leads and _reach(first, self.end) + first.radius == outermost else UNCLEAR


@dataclass(frozen=True)
class Place:
    """Matches in one half (SIDES) or quarter (CORNERS) of the image; the middle 16 % are a borderline case.

    If several shapes match and none is there, "on the left" could mean the leftmost, so the verdict is unclear.
    """

    of: Match
    region: str

    def judge(self, scene: Scene) -> Verdict:
        shapes = self.of.shapes(scene)
        verdict = _verdict(shapes, lambda shape: min(_in_half(shape, side, scene) for side in self.region.split()))
        return verdict if verdict.ids or len(shapes) <= 1 else UNCLEAR


@dataclass(frozen=True)
class Ordinal:
    """The match number ``rank`` (1 is the first) from a side (SIDES); none if there are fewer matches.

    Every other match must be before or after it by the margin between centers, and by its outer edge too.
    """

    of: Match
    rank: int
    side: str

    def judge(self, scene: Scene) -> Verdict:
        shapes = sorted(self.of.shapes(scene), key=lambda shape: -_reach(shape, self.side))
        if len(shapes) < self.rank:
            return Verdict()
        chosen = shapes[self.rank - 1]
        for at, shape in enumerate(shapes):
            sign = 1 if at < self.rank - 1 else -1
            lead = sign * (_reach(shape, self.side) - _reach(chosen, self.side))
            edge_lead = lead + sign * (shape.radius - chosen.radius)
            if shape is not chosen and (lead < scene.margin or edge_lead <= 0):
                return UNCLEAR
        return Verdict((chosen.id,))


@dataclass(frozen=True)
class Relative:
    """Matches on one side (SIDES) of an anchor, inside, behind, or in front of it (DEPTHS), or the "nearest" one.

    The anchor is the only shape of its match. Without an anchor, there is nothing beside it.
    """

    of: Match
    side: str
    anchor: Match

    def judge(self, scene: Scene) -> Verdict:
        anchor = Phrase(self.anchor).judge(scene)
        if anchor.unclear or not anchor.ids:
            return anchor
        fixed = scene.shapes[anchor.ids[0]]
        shapes = [shape for shape in self.of.shapes(scene) if shape.id != fixed.id]
        if self.side == "nearest":
            return _nearest(shapes, fixed, scene.margin)
        if self.side in DEPTHS:
            return _verdict(shapes, lambda shape: judge_depth(shape.id, self.side, fixed.id, scene))
        return _verdict(shapes, lambda shape: _beside(shape, self.side, fixed, scene.margin))


Head = Match | Most | Place | Ordinal | Relative


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: "the ..." (count 1), "the two ..." (count 2, 3, 4), or "all ..." (None: two or more).

    No match at all is a clear answer. Any other number than the words say is unclear.
    """

    head: Head
    count: int | None = 1

    def judge(self, scene: Scene) -> Verdict:
        verdict = self.head.judge(scene)
        number = len(verdict.ids)
        fits = number >= 2 if self.count is None else number == self.count
        return verdict if verdict.unclear or not number or fits else UNCLEAR


@dataclass(frozen=True)
class Meaning:
    """One noun phrase, or several joined by "and": all or none of them must have referents, and no two the same one."""

    phrases: tuple[Phrase, ...]

    def judge(self, scene: Scene) -> Verdict:
        verdicts = [phrase.judge(scene) for phrase in self.phrases]
        ids = [i for verdict in verdicts for i in verdict.ids]
        partly_empty = bool(ids) and not all(verdict.ids for verdict in verdicts)
        if any(verdict.unclear for verdict in verdicts) or partly_empty or len(set(ids)) < len(ids):
            return UNCLEAR
        return Verdict(tuple(sorted(ids)))


# Parts of judgments ---------------------------------------------------------------------------------------------------


def _verdict(shapes: list[Shape], judge: Callable[[Shape], int]) -> Verdict:
    """Return the shapes that are judged 1, or UNCLEAR if one is a borderline case (0)."""
    judged = {shape.id: judge(shape) for shape in shapes}
    return UNCLEAR if 0 in judged.values() else Verdict(tuple(i for i, value in judged.items() if value == 1))


def _reach(shape: Shape, end: str) -> int:
    """Return how far a shape's center is toward a side, or how large or small the shape is."""
    name, sign = AXES[end]
    return sign * getattr(shape, name)


def _in_half(shape: Shape, side: str, scene: Scene) -> int:
    """Return 1 in that half of the image, -1 in the other, 0 within 8 % of the middle line."""
    axis, sign = AXES[side]
    length = (scene.width if axis == "x" else scene.height) * UNIT
    part = sign * (getattr(shape, axis) * 100 - 50 * length)  # from the middle line, in hundredths
    return 0 if abs(part) < 8 * length else 1 if part > 0 else -1


def _squared_distance(one: Shape, other: Shape) -> int:
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2


def _beside(shape: Shape, side: str, anchor: Shape, margin: int) -> int:
    """Return 1 by the margin and at most 45 degrees off the axis, -1 beyond the anchor's center, else 0.

    Also 0 where one lies (nearly) inside the other: their centers are within 3/4 of the larger radius.
    """
    if _squared_distance(shape, anchor) * 16 <= 9 * max(shape.radius, anchor.radius) ** 2:
        return 0
    along = _reach(shape, side) - _reach(anchor, side)
    across = abs(shape.y - anchor.y if side in ("left", "right") else shape.x - anchor.x)
    return -1 if along <= 0 else 1 if along >= max(margin, across) else 0


def _nearest(shapes: list[Shape], anchor: Shape, margin: int) -> Verdict:
    """Return the shape whose center is nearest to the anchor's, by the margin and a tenth, and whose gap is smallest.

    UNCLEAR if a shape and the anchor overlap by a tenth of their radii.
    """
    distances = {shape.id: isqrt(_squared_distance(shape, anchor)) for shape in shapes}
    if any(distances[shape.id] * 10 < (shape.radius + anchor.radius) * 9 for shape in shapes):
        return UNCLEAR
    order = sorted(shapes, key=lambda shape: distances[shape.id])
    for other in order[1:]:
        first, second = distances[order[0].id], distances[other.id]
        gap_leads = first - order[0].radius < second - other.radius
        if second - first < max(margin, first // 10) or not gap_leads:
            return UNCLEAR
    return Verdict(tuple(shape.id for shape in order[:1]))


@lru_cache(maxsize=8)
def _masks(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the full and the visible masks of a scene: (N, H, W) bool each."""
    full = full_masks(scene)
    return full, visible_masks(full)


def judge_depth(i: int, depth: str, anchor: int, scene: Scene) -> int:
    """Return whether shape ``i`` is inside, behind, or in front ("front") of the anchor (1, 0, or -1)."""
    full, visible = _masks(scene)
    lower, upper = sorted((i, anchor))
    shared = np.count_nonzero(full[lower] & full[upper])
    if not shared:
        return -1
    if scene.shapes[lower].color == scene.shapes[upper].color:
        return 0  # nobody can see which one is in front
    upper_within = shared == np.count_nonzero(full[upper])
    if depth == "inside":  # a shape around the anchor is not inside it
        return 0 if not upper_within else 1 if i == upper else -1
    area = np.count_nonzero(full[lower])
    hidden_percent = np.count_nonzero(full[lower] & visible[upper]) * 100 // area
    if hidden_percent < HIDDEN_PERCENT or upper_within or shared == area:
        return 0
    return 1 if (i == lower) == (depth == "behind") else -1


@lru_cache(maxsize=8)
def clear_pairs(scene: Scene, depth: str) -> tuple[tuple[int, int], ...]:
    """Return the (shape, anchor) pairs that clearly have a depth relation."""
    ids = range(len(scene.shapes))
    pairs = [pair for upper in ids for lower in range(upper) for pair in ((lower, upper), (upper, lower))]
    return tuple((i, anchor) for i, anchor in pairs if judge_depth(i, depth, anchor, scene) == 1)


# Rules of a split ---------------------------------------------------------------------------------------------------

Pair = tuple[str, str]  # color, kind


@dataclass(frozen=True)
class Rule:
    """Restrictions on the scenes and phrases of a split; none by default.

    Args:
        banned: Pairs that are in no scene and no phrase.
        wanted: If given, each phrase refers to something that it describes by one of these pairs.
        kinds: If given, all referents are of these kinds. A no-target phrase started as such a phrase.
        distinct_anchors: No "red star left of the star": its words alone reveal that it refers to nothing.
    """

    banned: tuple[Pair, ...] = ()
    wanted: tuple[Pair, ...] = ()
    kinds: tuple[str, ...] = ()
    distinct_anchors: bool = False

    def allows(self, meaning: Meaning) -> bool:
        """Return whether this meaning may be used, in any scene."""
        heads = [phrase.head for phrase in meaning.phrases]
        if self.wanted and any((head.of.color, head.of.kind) not in self.wanted for head in heads):
            return False
        for head in heads if self.distinct_anchors else ():
            # Everything that the phrase could refer to also fits its anchor's description.
            if isinstance(head, Relative) and head.anchor.given.items() <= head.of.given.items():
                return False
        return not self.banned or not any(pair in self.banned for pair in named_pairs(meaning))

    def fits(self, scene: Scene) -> bool:
        """Return whether a scene has enough shapes to refer to: three of the kinds."""
        return not self.kinds or sum(shape.kind in self.kinds for shape in scene.shapes) >= 3

    def allows_referents(self, ids: tuple[int, ...], scene: Scene) -> bool:
        return not self.kinds or all(scene.shapes[i].kind in self.kinds for i in ids)


NO_RULE = Rule()


def named_pairs(meaning: Meaning) -> Iterator[tuple[str | None, str | None]]:
    """Yield the color-kind pairs of phrases and anchors; "a circle that is not red" names red and circle too."""
    for phrase in meaning.phrases:
        matches = [phrase.head.of]
        if isinstance(phrase.head, Relative):
            matches.append(phrase.head.anchor)
        for match in matches:
            named = match.given | (dict([match.without]) if match.without else {})
            yield named.get("color"), named.get("kind")
