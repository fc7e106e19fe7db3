"""Skills: each function proposes a head or a meaning about a scene, which grammar.py uses if it is clear there.

To add a skill, add a function and a line in ``SKILLS``.
"""

from collections.abc import Callable

from refseg.refshapes.meaning import (
    CORNERS,
    LAST_RANK,
    SIDES,
    Head,
    Match,
    Meaning,
    Most,
    Ordinal,
    Phrase,
    Place,
    Relative,
    clear_pairs,
)
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Scene, Shape

Skill = Callable[[Scene, Stream, bool], Head | Meaning | None]  # a head becomes a single phrase


# Attributes of an anchor, and of the shapes that a relation or rank chooses from; repeated ones are likelier
ANCHORS = ("kind", "kind color", "kind color", "size kind")
CANDIDATES = ("kind", "kind", "color", "kind color", "size kind", "")


def _match(shape: Shape, names: str) -> Match:
    return Match(**{name: getattr(shape, name) for name in names.split()})


def _some(scene: Scene, stream: Stream, choices: tuple[str, ...]) -> Match:
    """Return a few attributes of a random shape. One of the ``choices`` names them."""
    return _match(stream.choice(scene.shapes), stream.choice(choices))


def propose(name: str, scene: Scene, stream: Stream, several: bool) -> Meaning | None:
    """Return the proposal of a skill, about one shape or several. Numbers are words up to four, or "all" (None)."""
    proposal = SKILLS[name](scene, stream, several)
    if proposal is None or isinstance(proposal, Meaning):
        return proposal
    return Meaning((Phrase(proposal, _count(proposal, scene, stream) if several else 1),))


def _count(head: Head, scene: Scene, stream: Stream) -> int | None:
    """Return the number in a phrase about several shapes, if there is a word for it, or None for "all"."""
    number = len(head.judge(scene).ids)
    return number if 2 <= number <= 4 and stream.chance(30) else None


def attribute(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the red circle": kind, color and texture."""
    names = ("kind", "color", "kind color", "kind color", "kind texture", "color texture", "kind color texture")
    return _some(scene, stream, names)


def size(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "small blue star", "the biggest circle"."""
    if not several and stream.chance(30):
        of = _some(scene, stream, ("kind", "color", "kind color"))
        return Most(of, stream.choice(("large", "small"))) if len(of.shapes(scene)) >= 2 else None
    return _some(scene, stream, ("size kind", "size color", "size kind color", "size kind"))


def position(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the circle on the left", "leftmost square", "top right shape"."""
    of = _some(scene, stream, ("kind", "color", "kind color", "kind", "color", ""))
    if not several and len(of.shapes(scene)) >= 2 and stream.chance(50):
        return Most(of, stream.choice(SIDES))
    return Place(of, stream.choice(SIDES if several or stream.chance(65) else CORNERS))


def relation(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the star left of the red square"; only one shape matches the anchor."""
    of = _some(scene, stream, ("kind", "color", "kind color", "kind", "size kind", ""))
    anchor = _some(scene, stream, ANCHORS)
    return Relative(of, stream.choice(SIDES), anchor)


def group(scene: Scene, stream: Stream, several: bool) -> Head | Meaning:
    """ "all red shapes", "every square", "the two circles and the star"."""
    if stream.chance(55):
        return _some(scene, stream, ("kind", "color", "kind color", "kind texture", "color texture"))
    phrases = []
    for _ in range(3 if stream.chance(15) else 2):
        match = _some(scene, stream, ("kind", "kind color", "kind color", "color", "size kind"))
        phrases.append(Phrase(match, 1 if len(match.shapes(scene)) == 1 else _count(match, scene, stream)))
    return Meaning(tuple(phrases))


def negation(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "circle that is not red", if there are red ones too."""
    names = stream.choice(("kind color", "kind color", "color kind", "kind texture", "kind size"))
    name, unlike = names.split()
    shape = stream.choice(scene.shapes)
    if unlike == "texture" and shape.texture == "plain":
        return None  # nobody says "not plain"
    return Match(**{name: getattr(shape, name)}, without=(unlike, getattr(shape, unlike)))


def pose(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the tilted square", "star that is not tilted"; circles have no pose."""
    shape = stream.choice(scene.shapes)
    if shape.pose is None:
        return None
    names = stream.choice(("kind", "kind", "kind color", "kind size"))
    if shape.pose == "upright" and stream.chance(40):
        return Match(kind=shape.kind, without=("pose", "tilted"))
    if shape.pose == "tilted" and stream.chance(25):
        return _match(shape, stream.choice(("pose", "pose color")))
    return _match(shape, f"pose {names}")


def ordinal(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the second star from the left"; for single shapes only."""
    of = _some(scene, stream, CANDIDATES)
    number = len(of.shapes(scene))
    if several or number < 2:
        return None
    first = 1 if stream.chance(15) else 2
    return Ordinal(of, stream.between(first, min(number, LAST_RANK)), stream.choice(SIDES))


def nearest(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the circle nearest to the red square"; for single shapes only."""
    of = _some(scene, stream, CANDIDATES)
    return None if several else Relative(of, "nearest", _some(scene, stream, ANCHORS))


def inside(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the star inside the circle"."""
    return _depth(scene, stream, "inside")


def behind(scene: Scene, stream: Stream, several: bool) -> Head | None:
    """ "the square behind the triangle", "the triangle in front of the square"."""
    return _depth(scene, stream, stream.choice(("behind", "behind", "front")))


def _depth(scene: Scene, stream: Stream, depth: str) -> Head | None:
    pairs = clear_pairs(scene, depth)
    if not pairs:
        return None
    i, anchor = stream.choice(pairs)
    of = _match(scene.shapes[i], stream.choice(("kind", "kind", "color", "kind color", "")))
    return Relative(of, depth, _match(scene.shapes[anchor], stream.choice(ANCHORS)))


SKILLS: dict[str, Skill] = {
    "attribute": attribute, "size": size, "position": position, "relation": relation, "group": group,
    "negation": negation, "pose": pose, "ordinal": ordinal, "nearest": nearest, "inside": inside, "behind": behind,
}  # fmt: skip
