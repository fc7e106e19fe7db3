"""Expressions for a scene: one function per skill proposes a meaning, the judge decides whether it may be used.

A proposal is used when it is clear and refers to as many shapes as wanted: one, several, or none. An expression
without referents begins as a right one of any skill and is made wrong by one change, with the same wording rules, so
that the text alone tells little about whether something is there.

A new skill is a function here and a line in ``SKILLS``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from refseg.datasets.refshapes.changes import break_expression
from refseg.datasets.refshapes.meaning import CORNERS, SIDES, Expression, Head, Match, Most, Phrase, Place, Relative
from refseg.datasets.refshapes.scene import Scene, Shape
from refseg.datasets.refshapes.stream import Stream
from refseg.datasets.refshapes.wording import ground_words, realise, text_of


@dataclass(frozen=True)
class ExpressionSpec:
    """How many expressions an image has and of what sort; weights are whole numbers."""

    per_image: int = 6
    none_percent: int = 15
    several_percent: int = 25
    single_skills: dict[str, int] = field(
        default_factory=lambda: {"attribute": 5, "size": 4, "position": 5, "relation": 9, "negation": 2}
    )
    several_skills: dict[str, int] = field(
        default_factory=lambda: {"group": 10, "size": 2, "position": 4, "relation": 8, "negation": 3}
    )
    redundant_percent: int = 25  # of phrases whose size, place or relation could be left out


@dataclass(frozen=True)
class GroundedExpression:
    """A text with its ground truth."""

    text: str
    referents: tuple[int, ...]  # instance ids
    skill: str
    words: dict[int, list[int]]  # instance id -> indices of the words that describe it
    anchors: dict[int, list[int]]  # the same for what a relation is told from
    form: str  # the skill that it looks like; differs from ``skill`` for no_target only
    change: str | None = None  # what was changed to make it refer to nothing


Skill = Callable[[Scene, Stream, bool], Expression | None]


def _match(shape: Shape, names: tuple[str, ...]) -> Match:
    return Match(**{name: getattr(shape, name) for name in names})


def _some(scene: Scene, stream: Stream, *choices: tuple[str, ...]) -> Match:
    """A few attributes of a random shape; ``choices`` are the combinations to draw from."""
    return _match(stream.choice(scene.shapes), stream.choice(choices))


def _count(head: Head, scene: Scene, stream: Stream) -> int | None:
    """A number for a phrase about several shapes: what is there, where words have it, or "all"."""
    found = len(head.judge(scene).ids)
    return found if 2 <= found <= 4 and stream.chance(30) else None


def _single_phrase(head: Head, scene: Scene, stream: Stream, several: bool) -> Expression:
    return Expression((Phrase(head, _count(head, scene, stream) if several else 1),))


def attribute(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "the red circle": kind, colour and texture."""
    match = _some(
        scene, stream, ("kind",), ("colour",), ("kind", "colour"), ("kind", "colour"), ("kind", "texture"),
        ("colour", "texture"), ("kind", "colour", "texture"),
    )  # fmt: skip
    return _single_phrase(match, scene, stream, several)


def size(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "small blue star", "the biggest circle"."""
    if not several and stream.chance(30):
        of = _some(scene, stream, ("kind",), ("colour",), ("kind", "colour"))
        if len(of.shapes(scene)) < 2:
            return None
        return Expression((Phrase(Most(of, stream.choice(("large", "small")))),))
    match = _some(scene, stream, ("size", "kind"), ("size", "colour"), ("size", "kind", "colour"), ("size", "kind"))
    return _single_phrase(match, scene, stream, several)


def position(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "the circle on the left", "leftmost square", "top right shape"."""
    of = _some(scene, stream, ("kind",), ("colour",), ("kind", "colour"), ("kind",), ("colour",), ())
    if not several and len(of.shapes(scene)) >= 2 and stream.chance(50):
        return Expression((Phrase(Most(of, stream.choice(SIDES))),))
    region = stream.choice(SIDES if several or stream.chance(65) else CORNERS)
    return _single_phrase(Place(of, region), scene, stream, several)


def relation(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "the star left of the red square"; the anchor is the only one of its description."""
    of = _some(scene, stream, ("kind",), ("colour",), ("kind", "colour"), ("kind",), ("size", "kind"), ())
    anchor = Phrase(_some(scene, stream, ("kind",), ("kind", "colour"), ("kind", "colour"), ("size", "kind")))
    return _single_phrase(Relative(of, stream.choice(SIDES), anchor), scene, stream, several)


def group(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "all red shapes", "every square", "the two circles and the star"."""
    choices = (("kind",), ("colour",), ("kind", "colour"), ("kind", "texture"), ("colour", "texture"))
    if stream.chance(55):
        return _single_phrase(_some(scene, stream, *choices), scene, stream, True)
    phrases = []
    for _ in range(3 if stream.chance(15) else 2):
        match = _some(scene, stream, ("kind",), ("kind", "colour"), ("kind", "colour"), ("colour",), ("size", "kind"))
        found = len(match.shapes(scene))
        phrases.append(Phrase(match, 1 if found == 1 else _count(match, scene, stream)))
    return Expression(tuple(phrases))


def negation(scene: Scene, stream: Stream, several: bool) -> Expression | None:
    """ "circle that is not red", where there are red ones too."""
    name, unlike = stream.choice(
        (("kind", "colour"), ("kind", "colour"), ("colour", "kind"), ("kind", "texture"), ("kind", "size"))
    )
    shape = stream.choice(scene.shapes)
    if unlike == "texture" and shape.texture == "plain":
        return None  # nobody says "not plain"
    match = Match(**{name: getattr(shape, name)}, without=(unlike, getattr(shape, unlike)))
    return _single_phrase(match, scene, stream, several)


SKILLS: dict[str, Skill] = {
    "attribute": attribute,
    "size": size,
    "position": position,
    "relation": relation,
    "group": group,
    "negation": negation,
}


def redundant(expression: Expression, scene: Scene) -> bool:
    """Whether each phrase means the same shapes without its place, rank or relation, or else without its size."""
    return all(_without_extras(phrase.head).judge(scene) == phrase.judge(scene) for phrase in expression.phrases)


def _without_extras(head: Head) -> Match:
    """Without size; for a size-less match this is everything, which is never redundant."""
    if not isinstance(head, Match):
        return head.of
    return replace(head, size=None) if head.size else Match()


def _propose(scene: Scene, stream: Stream, skill: str, several: bool, redundant_percent: int) -> Expression | None:
    """A clear expression of a skill for one shape or for several; None when 40 proposals fail."""
    for _ in range(40):
        expression = SKILLS[skill](scene, stream, several)
        if expression is None:
            continue
        verdict = expression.judge(scene)
        if verdict.unclear or (len(verdict.ids) >= 2) != several or not verdict.ids:
            continue
        if not redundant(expression, scene) or stream.chance(redundant_percent):
            return expression
    return None


def _one_expression(scene: Scene, spec: ExpressionSpec, stream: Stream) -> GroundedExpression | None:
    """Draw what is wanted and a skill; None when the scene has nothing of that kind."""
    want = stream.weighted(
        {
            "none": spec.none_percent,
            "several": spec.several_percent,
            "one": 100 - spec.none_percent - spec.several_percent,
        }
    )
    # What refers to nothing is to read like the rest: singular and plural in the same proportion.
    several = want == "several" or (want == "none" and stream.below(100 - spec.none_percent) < spec.several_percent)
    for _ in range(30):
        form = stream.weighted(spec.several_skills if several else spec.single_skills)
        # A right expression that is to be broken may be redundant: "circle on the left" of the only circle.
        redundant_percent = 100 if want == "none" else spec.redundant_percent
        expression, change = _propose(scene, stream, form, several, redundant_percent), None
        if expression is not None and want == "none":
            expression, change = break_expression(expression, scene, stream)
        if expression is None:
            continue
        words = realise(expression, stream)
        referents, anchors = ground_words(expression, words, scene)
        skill = "no_target" if want == "none" else form
        ids = expression.judge(scene).ids
        return GroundedExpression(text_of(words), ids, skill, referents, anchors, form, change)
    return None


def make_expressions(scene: Scene, spec: ExpressionSpec, stream: Stream) -> list[GroundedExpression] | None:
    """``spec.per_image`` expressions with different texts; None when the scene is too poor for that."""
    found: dict[str, GroundedExpression] = {}
    for _ in range(20 * spec.per_image):
        if len(found) == spec.per_image:
            return list(found.values())
        expression = _one_expression(scene, spec, stream)
        if expression is not None:
            found.setdefault(expression.text, expression)
    return None
