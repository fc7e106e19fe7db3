"""Hard expressions that refer to nothing: a right one, with one thing changed in each of its phrases."""

from collections.abc import Callable
from dataclasses import replace

from refseg.refshapes.meaning import (
    LAST_RANK,
    OPPOSITE,
    Expression,
    Head,
    Match,
    Nearest,
    Ordinal,
    Phrase,
    Place,
    Relative,
    match_of,
)
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import VALUES, Scene

Change = Callable[[Head, Scene, Stream], Head | None]


def _other_value(name: str, value: str, scene: Scene, stream: Stream) -> str:
    """Another value of an attribute; mostly one that the scene shows, so that its mere presence decides nothing."""
    others = [other for other in VALUES[name] if other != value]
    shown = {getattr(shape, name) for shape in scene.shapes}
    present = [other for other in others if other in shown]
    return stream.choice(present if present and stream.chance(75) else others)


def _change_match(match: Match, scene: Scene, stream: Stream) -> Match | None:
    names = list(match.given) + (["without"] if match.without else [])
    if not names:
        return None
    name = stream.choice(names)
    if name == "without" and match.without is not None:
        unlike, value = match.without
        return replace(match, without=(unlike, _other_value(unlike, value, scene, stream)))
    value = _other_value(name, match.given[name], scene, stream)
    changed = Match(**{**match.given, name: value}, without=match.without)
    return changed if changed.sensible else None


def change_attribute(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the red circle" -> "the blue circle"."""
    match = _change_match(match_of(head), scene, stream)
    if match is None or isinstance(head, Match):
        return match
    return replace(head, of=match)


def change_side(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the square" -> "the star right of the square"; the same for places."""
    if isinstance(head, Place):
        flipped = head.region.split()
        at = stream.below(len(flipped))
        flipped[at] = OPPOSITE[flipped[at]]
        return replace(head, region=" ".join(flipped))
    if isinstance(head, Relative):
        return replace(head, side=OPPOSITE[head.side]) if head.side in OPPOSITE else None
    return None


def change_order(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the square" -> "the square left of the star": the same words in another order."""
    if not isinstance(head, Relative) or not head.of.given:
        return None
    return replace(head, of=match_of(head.anchor.head), anchor=Phrase(head.of))


def change_anchor(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the star left of the red square" -> "the star left of the blue square"."""
    if not isinstance(head, Relative | Nearest):
        return None
    match = _change_match(match_of(head.anchor.head), scene, stream)
    return replace(head, anchor=Phrase(match)) if match else None


def change_rank(head: Head, scene: Scene, stream: Stream) -> Head | None:
    """ "the second star from the left" -> "the third star from the left", where there are two."""
    if not isinstance(head, Ordinal):
        return None
    return replace(head, rank=stream.between(head.rank + 1, LAST_RANK)) if head.rank < LAST_RANK else None


CHANGES: dict[str, Change] = {
    "attribute": change_attribute,
    "side": change_side,
    "order": change_order,
    "anchor": change_anchor,
    "rank": change_rank,
}
# Side and order keep the words and change the meaning only, and seldom leave a clear case: they are tried most.
CHANGE_WEIGHTS = {"attribute": 2, "side": 10, "order": 8, "anchor": 1}
ORDINAL_WEIGHTS = {"attribute": 2, "rank": 1}  # few ranks go beyond what is there; else "fourth" would tell of nothing


def break_expression(
    expression: Expression, scene: Scene, stream: Stream, allows: Callable[[Expression], bool] = lambda _: True
) -> tuple[Expression, str] | tuple[None, None]:
    """Change each phrase once, all in the same way, so that the whole clearly refers to nothing; None if 60 tries fail.

    The things the changed phrase asks for stay within one change of what the scene holds.
    """
    ordinal = any(isinstance(phrase.head, Ordinal) for phrase in expression.phrases)
    for _ in range(60):
        name = stream.weighted(ORDINAL_WEIGHTS if ordinal else CHANGE_WEIGHTS)
        heads = [CHANGES[name](phrase.head, scene, stream) for phrase in expression.phrases]
        pairs = zip(expression.phrases, heads, strict=True)
        broken = Expression(tuple(replace(phrase, head=head) for phrase, head in pairs if head is not None))
        if len(broken.phrases) < len(heads):
            continue
        verdict = broken.judge(scene)
        if not verdict.unclear and not verdict.ids and allows(broken):
            return broken, name
    return None, None
