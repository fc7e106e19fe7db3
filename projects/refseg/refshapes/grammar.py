"""Expressions for a scene: a function of skills.py proposes a meaning, the judge decides whether it may be used.

A proposal is used when it is clear and refers to as many shapes as wanted: one, several, or none. An expression
without referents begins as a right one of any skill and is made wrong by one change, with the same wording rules, so
that the text alone tells little about whether something is there.
"""

from dataclasses import dataclass, field, replace

from refseg.refshapes.changes import break_expression
from refseg.refshapes.meaning import Expression, Head, Match
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.rules import NO_RULE, Rule
from refseg.refshapes.scene import Scene
from refseg.refshapes.skills import SKILLS
from refseg.refshapes.wording import ground_words, realize, text_of


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
    distinct_anchors: bool = False  # no "red star left of the star", which never refers to anything


@dataclass(frozen=True)
class GroundedExpression:
    """A text with its ground truth."""

    text: str
    referents: tuple[int, ...]  # instance ids
    skill: str
    words: dict[int, list[int]]  # instance id -> indices of the words that describe it
    anchors: dict[int, list[int]]  # the same for what a relation is told from
    form: str  # the skill that it looks like; differs from ``skill`` for no_target only
    meaning: Expression
    change: str | None = None  # what was changed to make it refer to nothing


def redundant(expression: Expression, scene: Scene) -> bool:
    """Whether each phrase means the same shapes without its place, rank or relation, or else its size and pose."""
    return all(_without_extras(phrase.head).judge(scene) == phrase.judge(scene) for phrase in expression.phrases)


def _without_extras(head: Head) -> Match:
    """Without size and pose; for a match with neither this is everything, which is never redundant."""
    if not isinstance(head, Match):
        return head.of
    return replace(head, size=None, pose=None) if head.size or head.pose else Match()


def _propose(
    scene: Scene, stream: Stream, skill: str, several: bool, redundant_percent: int, rule: Rule
) -> Expression | None:
    """A clear expression of a skill for one shape or for several; None when 40 proposals fail."""
    for _ in range(40):
        expression = SKILLS[skill](scene, stream, several)
        if expression is None:
            continue
        verdict = expression.judge(scene)
        if verdict.unclear or (len(verdict.ids) >= 2) != several or not verdict.ids:
            continue
        if not rule.allows(expression) or not rule.allows_referents(verdict.ids, scene):
            continue
        if not redundant(expression, scene) or stream.chance(redundant_percent):
            return expression
    return None


def _one_expression(scene: Scene, spec: ExpressionSpec, stream: Stream, rule: Rule) -> GroundedExpression | None:
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
        expression, change = _propose(scene, stream, form, several, redundant_percent, rule), None
        if expression is not None and want == "none":
            expression, change = break_expression(expression, scene, stream, rule.allows)
        if expression is None:
            continue
        words = realize(expression, stream)
        referents, anchors = ground_words(expression, words, scene)
        skill = "no_target" if want == "none" else form
        ids = expression.judge(scene).ids
        return GroundedExpression(text_of(words), ids, skill, referents, anchors, form, expression, change)
    return None


def make_expressions(
    scene: Scene, spec: ExpressionSpec, stream: Stream, rule: Rule = NO_RULE
) -> list[GroundedExpression] | None:
    """``spec.per_image`` expressions with different texts; None when the scene is too poor for that."""
    found: dict[str, GroundedExpression] = {}
    for _ in range(20 * spec.per_image):
        if len(found) == spec.per_image:
            return list(found.values())
        expression = _one_expression(scene, spec, stream, rule)
        if expression is not None:
            found.setdefault(expression.text, expression)
    return None
