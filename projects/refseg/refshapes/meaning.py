"""What an expression means: small typed forms that are judged on a scene and, in wording.py, put into words.

Judging is three-valued. Each shape is referred to, is not, or is a borderline case ("left of" when it is hardly
further left). A form with a borderline case is ``unclear`` on that scene and is never used, so that every expression
that is used has exactly one right answer.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt

from refseg.refshapes.depth import DEPTHS, judge_depth
from refseg.refshapes.scene import UNIT, VALUES, Scene, Shape

SIDES = ("left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
LAST_RANK = 4  # "the fourth star from the left"
OPPOSITE = {
    "left": "right", "right": "left", "top": "bottom", "bottom": "top", "large": "small", "small": "large",
    "behind": "front", "front": "behind",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The shapes referred to, in scene order; ``unclear``: people could disagree about them."""

    ids: tuple[int, ...] = ()
    unclear: bool = False


UNCLEAR = Verdict(unclear=True)


@dataclass(frozen=True)
class Match:
    """Shapes with the attributes that are given, and, for a negation, without the one attribute named last."""

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    pose: str | None = None
    without: tuple[str, str] | None = None  # ("color", "red"): not red

    @cached_property
    def given(self) -> dict[str, str]:
        """The attributes that are asked for, by name."""
        return {name: value for name in VALUES if (value := getattr(self, name)) is not None}

    def shapes(self, scene: Scene) -> list[Shape]:
        found = list(scene.shapes)
        for name, value in self.given.items():
            found = [shape for shape in found if getattr(shape, name) == value]
        if self.without is not None:
            name, value = self.without
            found = [shape for shape in found if getattr(shape, name) != value]
        return found

    @property
    def sensible(self) -> bool:
        """Circles have no pose, and whether "upright shapes" takes them in, people could disagree about."""
        pose = dict([self.without]).get("pose", self.pose) if self.without else self.pose
        return pose is None or (self.kind != "circle" and (self.kind is not None or pose == "tilted"))

    def judge(self, scene: Scene) -> Verdict:
        return Verdict(tuple(shape.id for shape in self.shapes(scene)))


@dataclass(frozen=True)
class Most:
    """The one match farthest to a side of SIDES, or the largest or smallest ("large", "small") by radius.

    It is the farthest by its center, by the margin, and by its outer edge too; its radius must differ by a quarter.
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
    """Matches in one half (SIDES) or quarter (CORNERS) of the image; the middle 16 % belong clearly to neither half.

    When several shapes match and none is there, "on the left" may be understood as the leftmost: unclear.
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
    """The match that is number ``rank`` (1 is the first) from a side (SIDES); where there are fewer, there is none.

    Each other match is before or after it by its center, by the margin, and by its outer edge too.
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
            return anchor  # without an anchor there is nothing beside it
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
    """The match with the center nearest to the anchor's, by the margin and a tenth, and with the smallest gap too.

    It is unclear where a match and the anchor lie over each other, by a tenth of their radii.
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
    """A noun phrase: "the ..." (count 1), "the two ..." (count 2, 3, 4) or "all ..." (None: any number above one).

    Nothing there is a clear answer; another number than the words say is not.
    """

    head: Head
    count: int | None = 1

    def judge(self, scene: Scene) -> Verdict:
        verdict = self.head.judge(scene)
        found = len(verdict.ids)
        right = found >= 2 if self.count is None else found == self.count
        return verdict if verdict.unclear or not found or right else UNCLEAR


@dataclass(frozen=True)
class Expression:
    """One noun phrase, or several joined by "and": these must all be found, or none, and must not overlap."""

    phrases: tuple[Phrase, ...]

    def judge(self, scene: Scene) -> Verdict:
        verdicts = [phrase.judge(scene) for phrase in self.phrases]
        ids = [i for verdict in verdicts for i in verdict.ids]
        partly_empty = bool(ids) and not all(verdict.ids for verdict in verdicts)
        if any(verdict.unclear for verdict in verdicts) or partly_empty or len(set(ids)) < len(ids):
            return UNCLEAR
        return Verdict(tuple(sorted(ids)))


def match_of(head: Head) -> Match:
    """The attributes that a head asks of its own shapes."""
    return head if isinstance(head, Match) else head.of


def _reach(shape: Shape, end: str) -> int:
    """How far a shape's center is towards a side, or how large or small the shape is."""
    return {
        "left": -shape.x,
        "right": shape.x,
        "top": -shape.y,
        "bottom": shape.y,
        "large": shape.radius,
        "small": -shape.radius,
    }[end]


def _in_half(shape: Shape, side: str, scene: Scene) -> int:
    """1 in that half of the image, -1 in the other, 0 within 8 % of the middle line."""
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
    """1 by the margin and at most 45 degrees off the axis, -1 on the far side of the anchor's center, else 0.

    0 too where one lies inside or nearly inside the other: 3/4 of the larger radius or less between the centers.
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
