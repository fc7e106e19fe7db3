"""Expressions for a scene: a skill proposes a meaning, and the judge decides whether it may be used.

A proposal is used if it is clear and refers to as many shapes as wanted: one, several, or none. An expression without
referents starts as one with referents, of any skill. One change in each of its phrases makes it refer to nothing, and
the wording rules are the same, so the text alone says little about whether something is there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from refseg.refshapes.meaning import LAST_RANK, NO_RULE, OPPOSITE, Head, Match, Meaning, Ordinal, Place, Relative, Rule
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import VALUES, Scene
from refseg.refshapes.skills import propose
from refseg.refshapes.wording import ground_words, realize, text_of


@dataclass(frozen=True)
class ExpressionSpec:
    """Number and kinds of the expressions of an image; weights are whole numbers."""

    per_image: int = 6
    none_percent: int = 15
    several_percent: int = 25
    single_skills: dict[str, int] = field(
        default_factory=lambda: {"attribute": 5, "size": 4, "position": 5, "relation": 9, "negation": 2}
    )
    several_skills: dict[str, int] = field(
        default_factory=lambda: {"group": 10, "size": 2, "position": 4, "relation": 8, "negation": 3}
    )
    redundant_percent: int = 25  # share of redundant phrases that are kept
    distinct_anchors: bool = False  # no "red star left of the star", which never refers to anything


@dataclass(frozen=True)
class GroundedExpression:
    """A text with its ground truth."""

    text: str
    referents: tuple[int, ...]  # instance ids
    skill: str
    words: dict[int, list[int]]  # instance id -> indices of the words that describe it
    anchors: dict[int, list[int]]  # the same for the anchors of relations
    form: str  # the skill that it looks like; differs from ``skill`` for no_target only
    meaning: Meaning
    change: str | None = None  # the change that made it refer to nothing


def make_expressions(
    scene: Scene, spec: ExpressionSpec, stream: Stream, rule: Rule = NO_RULE
) -> list[GroundedExpression] | None:
    """Return ``spec.per_image`` expressions with different texts; None if the scene is too poor for that."""
    by_text: dict[str, GroundedExpression] = {}
    for _ in range(20 * spec.per_image):
        if len(by_text) == spec.per_image:
            return list(by_text.values())
        expression = _make_expression(scene, spec, stream, rule)
        if expression is not None:
            by_text.setdefault(expression.text, expression)
    return None


def _make_expression(scene: Scene, spec: ExpressionSpec, stream: Stream, rule: Rule) -> GroundedExpression | None:
    """Draw the number of referents and a skill; None if the scene has nothing that fits them."""
    one_percent = 100 - spec.none_percent - spec.several_percent
    want = stream.weighted({"none": spec.none_percent, "several": spec.several_percent, "one": one_percent})
    # No-target expressions are singular and plural in the same proportion as the others.
    several = want == "several" or (want == "none" and stream.below(100 - spec.none_percent) < spec.several_percent)
    for _ in range(30):
        form = stream.weighted(spec.several_skills if several else spec.single_skills)
        # A phrase that is going to be changed may be redundant: "circle on the left" of the only circle.
        redundant_percent = 100 if want == "none" else spec.redundant_percent
        meaning, change = _propose(scene, stream, form, several, redundant_percent, rule), None
        if meaning is not None and want == "none":
            meaning, change = break_meaning(meaning, scene, stream, rule)
        if meaning is None:
            continue
        words = realize(meaning, stream)
        referents, anchors = ground_words(meaning, words, scene)
        skill = "no_target" if want == "none" else form
        ids = meaning.judge(scene).ids
        return GroundedExpression(text_of(words), ids, skill, referents, anchors, form, meaning, change)
    return None


def _propose(
    scene: Scene, stream: Stream, skill: str, several: bool, redundant_percent: int, rule: Rule
) -> Meaning | None:
    """Return a clear meaning of a skill about one shape or several; None after 40 proposals without one."""
    for _ in range(40):
        meaning = propose(skill, scene, stream, several)
        if meaning is None:
            continue
        verdict = meaning.judge(scene)
        if verdict.unclear or (len(verdict.ids) >= 2) != several or not verdict.ids:
            continue
        if not rule.allows(meaning) or not rule.allows_referents(verdict.ids, scene):
            continue
        if not redundant(meaning, scene) or stream.chance(redundant_percent):
            return meaning
    return None


def redundant(meaning: Meaning, scene: Scene) -> bool:
    """Return whether each phrase refers to the same shapes without its place, rank, relation, size, or pose."""

    def without_extras(head: Head) -> Match:
        if not isinstance(head, Match):
            return head.of
        # A match loses its size and pose. One that has neither becomes "everything", which is never redundant.
        return replace(head, size=None, pose=None) if head.size or head.pose else Match()

    return all(without_extras(phrase.head).judge(scene) == phrase.judge(scene) for phrase in meaning.phrases)


# Changes that make an expression refer to nothing ---------------------------------------------------------------------

Change = Callable[[Head, Scene, Stream], Head | None]  # None where there is nothing to change


def break_meaning(
    meaning: Meaning, scene: Scene, stream: Stream, rule: Rule = NO_RULE
) -> tuple[Meaning, str] | tuple[None, None]:
    """Change each phrase once, all in the same way, so that the whole clearly refers to nothing.

    The shapes that the changed phrases ask for stay within one change of those in the scene.

    Returns:
        The changed meaning and the name of the change; (None, None) after 60 failed tries.
    """
    ordinal = any(isinstance(phrase.head, Ordinal) for phrase in meaning.phrases)
    for _ in range(60):
        name = stream.weighted(ORDINAL_WEIGHTS if ordinal else CHANGE_WEIGHTS)
        heads = [CHANGES[name](phrase.head, scene, stream) for phrase in meaning.phrases]
        pairs = zip(meaning.phrases, heads, strict=True)
        broken = Meaning(tuple(replace(phrase, head=head) for phrase, head in pairs if head is not None))
        if len(broken.phrases) < len(heads):
            continue
        verdict = broken.judge(scene)
        if not verdict.unclear and not verdict.ids and rule.allows(broken):
            return broken, name
    return None, None


def change_attribute(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the red circle" -> "the blue circle"."""
    match = _change_match(head.of, scene, stream)
    return match if match is None or isinstance(head, Match) else replace(head, of=match)


def change_side(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the square" -> "the star right of the square"; the same for places."""
    if isinstance(head, Place):
        sides = head.region.split()
        at = stream.below(len(sides))
        sides[at] = OPPOSITE[sides[at]]
        return replace(head, region=" ".join(sides))
    if isinstance(head, Relative):
        return replace(head, side=OPPOSITE[head.side]) if head.side in OPPOSITE else None
    return None


def change_order(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the square" -> "the square left of the star": the same words in another order."""
    if not isinstance(head, Relative) or head.side == "nearest" or not head.of.given:
        return None
    return replace(head, of=head.anchor, anchor=head.of)


def change_anchor(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the red square" -> "the star left of the blue square"."""
    if not isinstance(head, Relative):
        return None
    match = _change_match(head.anchor, scene, stream)
    return replace(head, anchor=match) if match else None


def change_rank(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the second star from the left" -> "the third star from the left", where there are two."""
    if not isinstance(head, Ordinal) or head.rank == LAST_RANK:
        return None
    return replace(head, rank=stream.between(head.rank + 1, LAST_RANK))


CHANGES: dict[str, Change] = {
    "attribute": change_attribute, "side": change_side, "order": change_order, "anchor": change_anchor,
    "rank": change_rank,
}  # fmt: skip
# Side and order keep the words and change the meaning only, and seldom leave a clear case: they are tried most.
CHANGE_WEIGHTS = {"attribute": 2, "side": 10, "order": 8, "anchor": 1}
ORDINAL_WEIGHTS = {"attribute": 2, "rank": 1}  # few ranks are too high for the scene, or "fourth" would give it away


def _change_match(match: Match, scene: Scene, stream: Stream) -> Match | None:
    """Change the value of one attribute, or of the excluded one."""
    names = list(match.given) + (["without"] if match.without else [])
    if not names:
        return None
    name = stream.choice(names)
    excluded = match.without if name == "without" else None
    attribute, value = excluded or (name, match.given[name])
    # Mostly another value that the scene shows, so that its mere presence decides nothing.
    others = [other for other in VALUES[attribute] if other != value]
    shown = {getattr(shape, attribute) for shape in scene.shapes}
    present = [other for other in others if other in shown]
    other = stream.choice(present if present and stream.chance(75) else others)
    if excluded:
        return replace(match, without=(attribute, other))
    changed = Match(**{**match.given, attribute: other}, without=match.without)
    return changed if changed.sensible else None
