"""Long sentences for the "g" variant: what an expression means is told again, with more attributes and full clauses.

"the star by the square" becomes "the small striped red star that is to the left of the large blue square".
"""

from dataclasses import replace

from refseg.refshapes import vocabulary as v
from refseg.refshapes.meaning import (
    SIDES,
    Expression,
    Head,
    Match,
    Most,
    Nearest,
    Ordinal,
    Phrase,
    Place,
    Relative,
    match_of,
)
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.rules import Rule
from refseg.refshapes.scene import Scene, Shape
from refseg.refshapes.wording import ADJECTIVE_ORDER


def long_sentence(expression: Expression, scene: Scene, stream: Stream, rule: Rule) -> str | None:
    """A long sentence for what an expression about one shape refers to; None where 20 tries find no clear one."""
    verdict = expression.judge(scene)
    (target,) = verdict.ids
    (phrase,) = expression.phrases
    for _ in range(20):
        head = _enriched(phrase.head, scene.shapes[target], scene, stream)
        if isinstance(head, Match) and head.without is None and len(head.given) < 2:
            continue  # nothing to make a clause of
        richer = Expression((Phrase(head),))
        if richer.judge(scene) == verdict and rule.allows(richer):
            return _sentence(head, stream)
    return None


def _described(match: Match, shape: Shape, stream: Stream) -> Match:
    """A match with the shape's kind and one or two more of its attributes, beside what it has."""
    more = ["kind", *stream.sample(ADJECTIVE_ORDER, stream.between(1, 2))]
    excluded = match.without[0] if match.without else None
    values = {name: getattr(shape, name) for name in more if name != excluded}
    values = {name: value for name, value in values.items() if value not in v.UNSAID}
    return Match(**(values | match.given), without=match.without)


def _enriched(head: Head, target: Shape, scene: Scene, stream: Stream) -> Head:
    """The same head with more attributes; bare attributes mostly get a place beside another shape."""
    match = _described(match_of(head), target, stream)
    if isinstance(head, Match):
        others = [shape for shape in scene.shapes if shape.id != target.id]
        if match.without or not others or stream.chance(10):
            return match
        anchor = stream.choice(others)
        return Relative(match, stream.choice(SIDES), Phrase(_described(Match(), anchor, stream)))
    if isinstance(head, Relative | Nearest):
        anchor = scene.shapes[head.anchor.judge(scene).ids[0]]
        return replace(head, of=match, anchor=Phrase(_described(match_of(head.anchor.head), anchor, stream)))
    return replace(head, of=match)


def _sentence(head: Head, stream: Stream) -> str:
    if isinstance(head, Match) and head.without is None:
        names = [name for name in ADJECTIVE_ORDER if name in head.given]
        last = names[-1]
        clause = f"{stream.choice(v.LONG_CLAUSES)} {stream.choice(v.ADJECTIVES[last][head.given[last]])}"
        return f"{_group(replace(head, **{last: None}), stream)} {clause}"
    return f"{_group(match_of(head), stream)} {_clause(head, stream)}"


def _group(match: Match, stream: Stream) -> str:
    words = ["the"]
    words += [stream.choice(v.ADJECTIVES[name][match.given[name]]) for name in ADJECTIVE_ORDER if name in match.given]
    noun = stream.choice(v.KIND_NOUNS[match.kind] if match.kind else v.ANY_NOUNS)[0]
    return " ".join([*words, noun])


def _clause(head: Head, stream: Stream) -> str:
    """What stands after the noun."""
    if isinstance(head, Match):
        name, value = head.without or ("", "")
        excluded = f"{v.A_KIND} {stream.choice(v.KIND_NOUNS[value])[0]}" if name == "kind" else ""
        excluded = excluded or stream.choice(v.ADJECTIVES[name][value])
        return f"{stream.choice(v.NOT_CLAUSES)[0]} {excluded}"
    if isinstance(head, Most):
        return f"{stream.choice(v.LONG_CLAUSES)} {stream.choice(v.LONG_MOST[head.end])}"
    if isinstance(head, Place):
        return f"{stream.choice(v.LONG_SEEN)} {stream.choice(v.LONG_PLACES[head.region])}"
    if isinstance(head, Ordinal):
        rank, side = stream.choice(v.RANKS[head.rank]), stream.choice(v.FROM_SIDES[head.side])
        return f"{stream.choice(v.LONG_CLAUSES)} {v.LONG_RANK.format(rank=rank, side=side)}"
    table = v.LONG_NEAREST if isinstance(head, Nearest) else v.LONG_RELATIONS[head.side]
    lead = stream.choice(v.LONG_CLAUSES)
    if isinstance(head, Relative) and head.side in SIDES:
        lead = stream.choice(v.LONG_SEEN)
    return f"{lead} {stream.choice(table).format(anchor=_group(match_of(head.anchor.head), stream))}"
