"""Meaning -> words. Each word knows which phrase it describes, so that words can be tied to instances.

Variety comes from synonyms, dropped articles, the order of attributes and where a place or relation is told. Two
rules keep the words as clear as the meaning: what follows the noun is said only where nothing else follows, and phrases
joined by "and" begin with an article.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from refseg.refshapes import vocabulary as v
from refseg.refshapes.meaning import Expression, Match, Most, Nearest, Ordinal, Phrase, Place, Relative
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Scene

ADJECTIVE_ORDER = ("size", "pose", "texture", "color")


@dataclass(frozen=True)
class Word:
    text: str
    phrase: int | None = None  # the phrase whose instances this word describes; None for "the", "of", "not" ...
    anchor: bool = False  # it describes that phrase's anchor instead


def realize(expression: Expression, stream: Stream) -> tuple[Word, ...]:
    """Put an expression into words; the stream decides the wording only, never the meaning."""
    words: list[Word] = []
    joined = len(expression.phrases) > 1
    joint = stream.choice(v.JOINTS)
    for i, phrase in enumerate(expression.phrases):
        if i:
            words += _plain(joint if i == len(expression.phrases) - 1 else "and")
        words += _Wording(phrase, i, joined, stream).words()
    return tuple(words)


def text_of(words: tuple[Word, ...]) -> str:
    return " ".join(word.text for word in words)


def ground_words(
    expression: Expression, words: tuple[Word, ...], scene: Scene
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Instance id -> indices of the words that describe it: for the referents, and for the anchors of relations."""
    if not expression.judge(scene).ids:
        return {}, {}
    referents: dict[int, list[int]] = {}
    anchors: dict[int, list[int]] = {}
    for i, phrase in enumerate(expression.phrases):
        own = [k for k, word in enumerate(words) if word.phrase == i and not word.anchor]
        referents.update(dict.fromkeys(phrase.judge(scene).ids, own))
        if isinstance(phrase.head, Relative | Nearest):
            told = [k for k, word in enumerate(words) if word.phrase == i and word.anchor]
            anchors.update(dict.fromkeys(phrase.head.anchor.judge(scene).ids, told))
    return dict(sorted(referents.items())), anchors


def _plain(text: str) -> list[Word]:
    return [Word(text) for text in text.split()]


class _Wording:
    """The words of one noun phrase."""

    def __init__(self, phrase: Phrase, index: int, joined: bool, stream: Stream, anchor: bool = False) -> None:
        self.phrase = phrase
        self.index = index
        self.joined = joined
        self.anchor = anchor
        self.stream = stream
        determiners = v.JOINED_DETERMINERS if joined else v.DETERMINERS
        self.determiner = stream.choice(determiners[phrase.count])
        self.plural = phrase.count != 1 and self.determiner not in v.SINGULAR_DETERMINERS

    def words(self) -> list[Word]:
        head = self.phrase.head
        if isinstance(head, Match):
            return self._match(head)
        if isinstance(head, Most):
            return self._most(head)
        if isinstance(head, Place):
            return self._place(head)
        if isinstance(head, Ordinal):
            return self._ordinal(head)
        if isinstance(head, Nearest):
            return self._nearest(head)
        return self._relative(head)

    def _own(self, text: str) -> list[Word]:
        return [Word(text, self.index, self.anchor) for text in text.split()]

    def _group(self, match: Match, before: str = "", told_later: str | None = None) -> list[Word]:
        """Determiner, adjectives and noun; ``before`` goes first of the adjectives, ``told_later`` is left out."""
        adjectives = [
            self.stream.choice(v.ADJECTIVES[name][match.given[name]])
            for name in ADJECTIVE_ORDER
            if name in match.given and name != told_later
        ]
        if len(adjectives) == 2 and not before and self.stream.chance(15):
            adjectives.reverse()
        words = _plain(self.determiner) + self._own(before)
        for adjective in adjectives:
            words += self._own(adjective)
        return words + self._own(self._noun(match, bool(adjectives or before)))

    def _noun(self, match: Match, described: bool) -> str:
        if match.kind is not None:
            nouns = v.KIND_NOUNS[match.kind]
        else:
            nouns = v.ANY_NOUNS
            if described and not self.joined and self.determiner == "the" and self.stream.chance(30):
                nouns = (v.PRONOUN,)
            elif self.determiner in v.SINGULAR_DETERMINERS:
                nouns = v.ANY_NOUNS[:2]  # not "every thing"
        return self.stream.choice(nouns)[self.plural]

    def _match(self, match: Match) -> list[Word]:
        if match.without is not None:
            return self._negation(match, *match.without)
        names = [name for name in ADJECTIVE_ORDER if name in match.given]
        if self.joined or self.anchor or not names or not self.stream.chance(25):
            return self._group(match)
        name = self.stream.choice(names)
        group = self._group(match, told_later=name)
        value = match.given[name]
        if name == "texture" and self.stream.chance(60):
            return group + self._own(v.TEXTURE_TAILS[value])
        clause = self.stream.choice(v.CLAUSES)[self.plural]
        return group + _plain(clause) + self._own(self.stream.choice(v.ADJECTIVES[name][value]))

    def _negation(self, match: Match, name: str, value: str) -> list[Word]:
        if name == "kind":
            one, many = self.stream.choice(v.KIND_NOUNS[value])
            one, excluded = f"{v.A_KIND} {one}", many
        else:
            one = many = self.stream.choice(v.ADJECTIVES[name][value])
            excluded = f"{one} {v.PRONOUN[1]}"
        if self.determiner.startswith("all") and self.phrase.count is None and self.stream.chance(40):
            return self._group(match) + _plain(f"{v.EXCEPT} {excluded}")
        if name in ("color", "texture") and set(match.given) == {"kind"} and self.stream.chance(30):
            words = self._group(match)
            at = len(self.determiner.split())
            return words[:at] + _plain(f"{v.NOT_BEFORE} {one}") + words[at:]
        clause = self.stream.choice(v.NOT_CLAUSES)[self.plural]
        return self._group(match) + _plain(f"{clause} {many if self.plural else one}")

    def _most(self, most: Most) -> list[Word]:
        if most.end in v.MOST_AFTER and self.stream.chance(25):
            return self._group(most.of) + self._own(self.stream.choice(v.MOST_AFTER[most.end]))
        return self._group(most.of, before=self.stream.choice(v.MOST_BEFORE[most.end]))

    def _place(self, place: Place) -> list[Word]:
        if self.phrase.count == 1 and self.stream.chance(40):
            return self._group(place.of, before=self.stream.choice(v.PLACE_BEFORE[place.region]))
        return self._group(place.of) + self._own(self.stream.choice(v.PLACE_AFTER[place.region]))

    def _relative(self, relative: Relative) -> list[Word]:
        table: Mapping[str, tuple[str, ...]] = v.RELATIONS
        if self.phrase.count == 1 and self.stream.chance(35):
            table = v.TURNED_RELATIONS
        return self._with_anchor(self.stream.choice(table[relative.side]), relative.of, relative.anchor)

    def _nearest(self, nearest: Nearest) -> list[Word]:
        if self.stream.chance(30):
            before = self.stream.choice(v.NEAREST_BEFORE)
            return self._with_anchor(f"{v.NEAREST_JOINT} {v.ANCHOR}", nearest.of, nearest.anchor, before=before)
        return self._with_anchor(self.stream.choice(v.RELATIONS["nearest"]), nearest.of, nearest.anchor)

    def _with_anchor(self, words: str, of: Match, anchor: Phrase, before: str = "") -> list[Word]:
        """What is referred to, and a relation's words with the anchor's in their place."""
        start, end = words.split(v.ANCHOR)
        told = _Wording(anchor, self.index, self.joined, self.stream, anchor=True)
        return self._group(of, before=before) + _plain(start) + told.words() + _plain(end)

    def _ordinal(self, ordinal: Ordinal) -> list[Word]:
        rank = self.stream.choice(v.RANKS[ordinal.rank])
        side = self._own(self.stream.choice(v.FROM_SIDES[ordinal.side]))
        if self.stream.chance(25):
            return self._group(ordinal.of) + self._own(rank) + side
        return self._group(ordinal.of, before=rank) + side
