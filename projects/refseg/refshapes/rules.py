"""What the scenes and phrases of one split are held to: color-kind pairs kept apart, and what may be referred to."""

from collections.abc import Iterator
from dataclasses import dataclass

from refseg.refshapes.meaning import Expression, Match, Nearest, Phrase, Relative, match_of
from refseg.refshapes.scene import Scene

Pair = tuple[str, str]  # color, kind


@dataclass(frozen=True)
class Rule:
    """No rule by default.

    ``banned`` pairs are in no scene and no phrase. With ``wanted`` pairs, each phrase names one of them as what it
    refers to. With ``kinds``, all referents are of these kinds; a phrase without referents began as such a phrase.
    ``distinct_anchors``: no "red star left of the star", whose words alone tell that it refers to nothing.
    """

    banned: tuple[Pair, ...] = ()
    wanted: tuple[Pair, ...] = ()
    kinds: tuple[str, ...] = ()
    distinct_anchors: bool = False

    def allows(self, expression: Expression) -> bool:
        """Whether these words may be said, whatever the scene holds."""
        if self.wanted and not all(_pair(match_of(phrase.head)) in self.wanted for phrase in expression.phrases):
            return False
        if self.distinct_anchors and any(map(_is_its_own_anchor, expression.phrases)):
            return False
        return not self.banned or not any(pair in self.banned for pair in named_pairs(expression))

    def fits(self, scene: Scene) -> bool:
        """Whether there is enough to refer to: three shapes of the kinds."""
        return not self.kinds or sum(shape.kind in self.kinds for shape in scene.shapes) >= 3

    def allows_referents(self, ids: tuple[int, ...], scene: Scene) -> bool:
        return not self.kinds or all(scene.shapes[i].kind in self.kinds for i in ids)


NO_RULE = Rule()


def _is_its_own_anchor(phrase: Phrase) -> bool:
    """Whether all that the phrase could refer to answers to its anchor's description too."""
    if not isinstance(phrase.head, Relative | Nearest):
        return False
    return match_of(phrase.head.anchor.head).given.items() <= phrase.head.of.given.items()


def _pair(match: Match) -> tuple[str | None, str | None]:
    return match.color, match.kind


def named_pairs(expression: Expression) -> Iterator[tuple[str | None, str | None]]:
    """The color-kind pairs that phrases and anchors name; "a circle that is not red" names red and circle too."""
    for phrase in expression.phrases:
        matches = [match_of(phrase.head)]
        if isinstance(phrase.head, Relative | Nearest):
            matches.append(match_of(phrase.head.anchor.head))
        for match in matches:
            named = match.given | (dict([match.without]) if match.without else {})
            yield named.get("color"), named.get("kind")
