"""Meanings of expressions: typed forms that are judged on a scene and, in wording.py, put into words.

Judging is three-valued. A shape is referred to (1), is not (-1), or is a borderline case (0), such as "left of" when it
is hardly farther left. A meaning with a borderline case is ``unclear`` on that scene and is never used, so every
expression that is used has exactly one right answer.
"""

from collections.abc import Iterator
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
        verdicts = [min(_in_half(shape, side, scene) for side in self.region.split()) for shape in shapes]
        inside = tuple(shape.id for shape, verdict in zip(shapes, verdicts, strict=True) if verdict == 1)
        if 0 in verdicts or (not inside and len(shapes) > 1):
            return UNCLEAR
        return Verdict(inside)


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
    """Matches on one side of an anchor (SIDES), or inside, behind or in front of it (DEPTHS)."""

    of: Match
    side: str
    anchor: "Phrase"

    def judge(self, scene: Scene) -> Verdict:
        anchor = self.anchor.judge(scene)
        if anchor.unclear or not anchor.ids:
            return anchor  # without an anchor, nothing is beside it
        fixed = scene.shapes[anchor.ids[0]]
        shapes = [shape for shape in self.of.shapes(scene) if shape.id != fixed.id]
        if self.side in DEPTHS:
            verdicts = [judge_depth(shape.id, self.side, fixed.id, scene) for shape in shapes]
        else:
            verdicts = [_beside(shape, self.side, fixed, scene.margin) for shape in shapes]
        if 0 in verdicts:
            return UNCLEAR
        return Verdict(tuple(shape.id for shape, verdict in zip(shapes, verdicts, strict=True) if verdict == 1))


@dataclass(frozen=True)
class Nearest:
    """The match whose center is nearest to the anchor's, by the margin and a tenth, and whose gap is the smallest too.

    Unclear if a match and the anchor overlap by a tenth of their radii.
    """

    of: Match
    anchor: "Phrase"

    def judge(self, scene: Scene) -> Verdict:
        anchor = self.anchor.judge(scene)
        if anchor.unclear or not anchor.ids:
            return anchor
        fixed = scene.shapes[anchor.ids[0]]
        shapes = [shape for shape in self.of.shapes(scene) if shape.id != fixed.id]
        distances = {shape.id: isqrt(_squared_distance(shape, fixed)) for shape in shapes}
        if any(distances[shape.id] * 10 < (shape.radius + fixed.radius) * 9 for shape in shapes):
            return UNCLEAR
        order = sorted(shapes, key=lambda shape: distances[shape.id])
        for other in order[1:]:
            first, second = distances[order[0].id], distances[other.id]
            gap_leads = first - order[0].radius < second - other.radius
            if second - first < max(scene.margin, first // 10) or not gap_leads:
                return UNCLEAR
        return Verdict(tuple(shape.id for shape in order[:1]))


Head = Match | Most | Place | Relative | Ordinal | Nearest


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


def match_of(head: Head) -> Match:
    """Return the attributes that a head requires of the shapes that it refers to."""
    return head if isinstance(head, Match) else head.of


def _reach(shape: Shape, end: str) -> int:
    """Return how far a shape's center is towards a side, or how large or small the shape is."""
    return {
        "left": -shape.x,
        "right": shape.x,
        "top": -shape.y,
        "bottom": shape.y,
        "large": shape.radius,
        "small": -shape.radius,
    }[end]


def _in_half(shape: Shape, side: str, scene: Scene) -> int:
    """Return 1 in that half of the image, -1 in the other, 0 within 8 % of the middle line."""
    horizontal = side in ("left", "right")
    place, length = (shape.x, scene.width) if horizontal else (shape.y, scene.height)
    part = place * 100 - 50 * length * UNIT  # from the middle line, in hundredths
    if side in ("left", "top"):
        part = -part
    if abs(part) < 8 * length * UNIT:
        return 0
    return 1 if part > 0 else -1


def _squared_distance(one: Shape, other: Shape) -> int:
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2


def _beside(shape: Shape, side: str, anchor: Shape, margin: int) -> int:
    """Return 1 by the margin and at most 45 degrees off the axis, -1 beyond the anchor's center, else 0.

    Also 0 where one lies (nearly) inside the other: their centers are within 3/4 of the larger radius.
    """
    if _squared_distance(shape, anchor) * 16 <= 9 * max(shape.radius, anchor.radius) ** 2:
        return 0
    along, across = shape.x - anchor.x, abs(shape.y - anchor.y)
    if side in ("top", "bottom"):
        along, across = shape.y - anchor.y, abs(shape.x - anchor.x)
    if side in ("left", "top"):
        along = -along
    if along <= 0:
        return -1
    return 1 if along >= max(margin, across) else 0


# Depth: from the full masks of the shapes and the order in which they are drawn ---------------------------------------


@dataclass(frozen=True)
class Contact:
    """Two shapes that overlap."""

    upper_within: bool  # the upper one's full mask lies in the lower one's
    lower_within: bool
    hidden_percent: int  # share of the lower one that the visible part of the upper one hides
    distinct: bool  # of different colors, so that one can see which is in front


@lru_cache(maxsize=8)
def contacts(scene: Scene) -> dict[tuple[int, int], Contact]:
    """Return each two shapes that share pixels, by the ids of the lower and the upper one."""
    full = full_masks(scene)
    visible = visible_masks(full)
    by_ids = {}
    for upper in scene.shapes:
        for lower in scene.shapes[: upper.id]:
            both = full[lower.id] & full[upper.id]
            shared = int(np.count_nonzero(both))
            if shared:
                area = int(np.count_nonzero(full[lower.id]))
                by_ids[lower.id, upper.id] = Contact(
                    upper_within=shared == int(np.count_nonzero(full[upper.id])),
                    lower_within=shared == area,
                    hidden_percent=int(np.count_nonzero(full[lower.id] & visible[upper.id])) * 100 // area,
                    distinct=lower.color != upper.color,
                )
    return by_ids


def judge_depth(i: int, depth: str, anchor: int, scene: Scene) -> int:
    """Return whether shape ``i`` is inside, behind, or in front ("front") of the anchor (1, 0, or -1)."""
    contact = contacts(scene).get((min(i, anchor), max(i, anchor)))
    if contact is None:
        return -1
    if depth == "inside":
        if not contact.upper_within or not contact.distinct:
            return 0
        return 1 if i > anchor else -1  # a shape around the anchor is not inside it
    clear = contact.distinct and contact.hidden_percent >= HIDDEN_PERCENT
    if not clear or contact.upper_within or contact.lower_within:
        return 0
    return 1 if (i < anchor) == (depth == "behind") else -1


def clear_pairs(scene: Scene, depth: str) -> list[tuple[int, int]]:
    """Return the (shape, anchor) pairs that clearly have a depth relation."""
    pairs = [pair for lower, upper in contacts(scene) for pair in ((lower, upper), (upper, lower))]
    return [(i, anchor) for i, anchor in pairs if judge_depth(i, depth, anchor, scene) == 1]


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
        if self.wanted and any((m.color, m.kind) not in self.wanted for m in map(match_of, heads)):
            return False
        for head in heads if self.distinct_anchors else ():
            # Everything that the phrase could refer to also fits its anchor's description.
            if isinstance(head, Relative | Nearest) and (
                match_of(head.anchor.head).given.items() <= head.of.given.items()
            ):
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
        matches = [match_of(phrase.head)]
        if isinstance(phrase.head, Relative | Nearest):
            matches.append(match_of(phrase.head.anchor.head))
        for match in matches:
            named = match.given | (dict([match.without]) if match.without else {})
            yield named.get("color"), named.get("kind")
