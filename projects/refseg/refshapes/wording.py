"""Meaning -> words. Each word knows which phrase it describes, so that words can be tied to instances.

Synonyms, dropped articles, the order of attributes, and the position of a place or relation make the wording vary. Two
rules keep the words as clear as the meaning. An attribute follows the noun only if nothing else does. Phrases joined by
"and" begin with an article.

``realize`` words every expression. ``long_sentence`` is for RefCOCOg's layout: it words what an expression refers to
again, with more attributes and full clauses: "the star by the square" becomes "the small striped red star that is to
the left of the large blue square".
"""

from dataclasses import dataclass, replace

from refseg.refshapes import vocabulary as v
from refseg.refshapes.meaning import SIDES, Head, Match, Meaning, Most, Ordinal, Phrase, Place, Relative, Rule
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Scene, Shape

ADJECTIVE_ORDER = ("size", "pose", "texture", "color")


@dataclass(frozen=True)
class Word:
    text: str
    phrase: int | None = None  # the phrase whose instances this word describes; None for "the", "of", "not" ...
    anchor: bool = False  # it describes that phrase's anchor instead


def realize(meaning: Meaning, stream: Stream) -> tuple[Word, ...]:
    """Put a meaning into words; the stream decides only the wording."""
    words: list[Word] = []
    joined = len(meaning.phrases) > 1
    joint = stream.choice(v.JOINTS)
    for i, phrase in enumerate(meaning.phrases):
        if i:
            words += _plain(joint if i == len(meaning.phrases) - 1 else "and")
        words += _PhraseWriter(phrase, i, joined, stream).words()
    return tuple(words)


def text_of(words: tuple[Word, ...]) -> str:
    return " ".join(word.text for word in words)


def ground_words(
    meaning: Meaning, words: tuple[Word, ...], scene: Scene
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return instance id -> indices of the words that describe it, for the referents and for the anchors."""
    referents: dict[int, list[int]] = {}
    anchors: dict[int, list[int]] = {}
    if not meaning.judge(scene).ids:
        return referents, anchors
    for i, phrase in enumerate(meaning.phrases):
        of_phrase = [(k, word.anchor) for k, word in enumerate(words) if word.phrase == i]
        described = [k for k, of_anchor in of_phrase if not of_anchor]
        referents.update(dict.fromkeys(phrase.judge(scene).ids, described))
        if isinstance(phrase.head, Relative):
            described = [k for k, of_anchor in of_phrase if of_anchor]
            anchors.update(dict.fromkeys(phrase.head.anchor.judge(scene).ids, described))
    return dict(sorted(referents.items())), anchors


def _plain(text: str) -> list[Word]:
    return [Word(text) for text in text.split()]


class _PhraseWriter:
    """Puts one phrase into words. The determiner is drawn first, because it decides between singular and plural."""

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
        head, stream, single = self.phrase.head, self.stream, self.phrase.count == 1
        if isinstance(head, Match):
            return self._match(head) if head.without is None else self._negation(head, *head.without)
        if isinstance(head, Most):
            if head.end in v.MOST_AFTER and stream.chance(25):
                return self._noun_phrase(head.of) + self._describe(stream.choice(v.MOST_AFTER[head.end]))
            return self._noun_phrase(head.of, before=stream.choice(v.MOST_BEFORE[head.end]))
        if isinstance(head, Place):
            if single and stream.chance(40):
                return self._noun_phrase(head.of, before=stream.choice(v.PLACE_BEFORE[head.region]))
            return self._noun_phrase(head.of) + self._describe(stream.choice(v.PLACE_AFTER[head.region]))
        if isinstance(head, Ordinal):
            rank = stream.choice(v.RANKS[head.rank])
            side = self._describe(stream.choice(v.FROM_SIDES[head.side]))
            if stream.chance(25):
                return self._noun_phrase(head.of) + self._describe(rank) + side
            return self._noun_phrase(head.of, before=rank) + side
        # Relative: the relation's words, with the anchor's in their place
        before, relation = "", ""
        if head.side == "nearest" and stream.chance(30):
            before, relation = stream.choice(v.NEAREST_BEFORE), f"{v.NEAREST_JOINT} {v.ANCHOR}"
        elif head.side != "nearest" and single and stream.chance(35):
            relation = stream.choice(v.TURNED_RELATIONS[head.side])
        else:
            relation = stream.choice(v.RELATIONS[head.side])
        start, end = relation.split(v.ANCHOR)
        anchor = _PhraseWriter(Phrase(head.anchor), self.index, self.joined, stream, anchor=True)
        return self._noun_phrase(head.of, before=before) + _plain(start) + anchor.words() + _plain(end)

    def _describe(self, text: str) -> list[Word]:
        """Return words that describe what this phrase refers to."""
        return [Word(text, self.index, self.anchor) for text in text.split()]

    def _noun_phrase(self, match: Match, before: str = "", omitted: str | None = None) -> list[Word]:
        """Return determiner, adjectives, and noun.

        Args:
            match: The attributes to say.
            before: Words before the adjectives.
            omitted: An attribute that is not said here.
        """
        stream = self.stream
        adjectives = [
            stream.choice(v.ADJECTIVES[name][match.given[name]])
            for name in ADJECTIVE_ORDER
            if name in match.given and name != omitted
        ]
        if len(adjectives) == 2 and not before and stream.chance(15):
            adjectives.reverse()
        # The noun: that of the kind, a general one, or "one".
        nouns = v.ANY_NOUNS if match.kind is None else v.KIND_NOUNS[match.kind]
        if match.kind is None:
            if (adjectives or before) and not self.joined and self.determiner == "the" and stream.chance(30):
                nouns = (v.PRONOUN,)
            elif self.determiner in v.SINGULAR_DETERMINERS:
                nouns = v.ANY_NOUNS[:2]  # not "every thing"
        noun = stream.choice(nouns)[self.plural]
        return _plain(self.determiner) + self._describe(" ".join([before, *adjectives, noun]))

    def _match(self, match: Match) -> list[Word]:
        names = [name for name in ADJECTIVE_ORDER if name in match.given]
        if self.joined or self.anchor or not names or not self.stream.chance(25):
            return self._noun_phrase(match)
        # One attribute follows the noun.
        name = self.stream.choice(names)
        noun_phrase = self._noun_phrase(match, omitted=name)
        value = match.given[name]
        if name == "texture" and self.stream.chance(60):
            return noun_phrase + self._describe(v.TEXTURE_TAILS[value])
        clause = self.stream.choice(v.CLAUSES)[self.plural]
        return noun_phrase + _plain(clause) + self._describe(self.stream.choice(v.ADJECTIVES[name][value]))

    def _negation(self, match: Match, name: str, value: str) -> list[Word]:
        if name == "kind":
            one, many = self.stream.choice(v.KIND_NOUNS[value])
            one, excluded = f"{v.A_KIND} {one}", many
        else:
            one = many = self.stream.choice(v.ADJECTIVES[name][value])
            excluded = f"{one} {v.PRONOUN[1]}"
        # "all circles except red ones", "the non red circle", or "the circle that is not red"
        if self.determiner.startswith("all") and self.phrase.count is None and self.stream.chance(40):
            return self._noun_phrase(match) + _plain(f"{v.EXCEPT} {excluded}")
        if name in ("color", "texture") and set(match.given) == {"kind"} and self.stream.chance(30):
            words = self._noun_phrase(match)
            at = len(self.determiner.split())
            return words[:at] + _plain(f"{v.NOT_BEFORE} {one}") + words[at:]
        clause = self.stream.choice(v.NOT_CLAUSES)[self.plural]
        return self._noun_phrase(match) + _plain(f"{clause} {many if self.plural else one}")


# Long sentences -------------------------------------------------------------------------------------------------------


def long_sentence(meaning: Meaning, scene: Scene, stream: Stream, rule: Rule) -> str | None:
    """Return a long sentence for the referent of a meaning about one shape; None after 20 tries without a clear one."""
    verdict = meaning.judge(scene)
    (target,) = verdict.ids
    (phrase,) = meaning.phrases
    for _ in range(20):
        head = _enriched(phrase.head, scene.shapes[target], scene, stream)
        attributes_only = isinstance(head, Match) and head.without is None
        if attributes_only and len(head.of.given) < 2:
            continue  # nothing to make a clause of
        richer = Meaning((Phrase(head),))
        if richer.judge(scene) != verdict or not rule.allows(richer):
            continue
        if attributes_only:  # the last attribute goes into the clause
            name = [name for name in ADJECTIVE_ORDER if name in head.of.given][-1]
            clause = f"{stream.choice(v.LONG_CLAUSES)} {stream.choice(v.ADJECTIVES[name][head.of.given[name]])}"
            return f"{_long_group(replace(head.of, **{name: None}), stream)} {clause}"
        return f"{_long_group(head.of, stream)} {_long_clause(head, stream)}"
    return None


def _enriched(head: Head, target: Shape, scene: Scene, stream: Stream) -> Head:
    """Return the head with more attributes; a head of attributes alone mostly gets a place beside another shape."""
    match = _described(head.of, target, stream)
    if isinstance(head, Match):
        others = [shape for shape in scene.shapes if shape.id != target.id]
        if match.without or not others or stream.chance(10):
            return match
        anchor = stream.choice(others)
        return Relative(match, stream.choice(SIDES), _described(Match(), anchor, stream))
    if isinstance(head, Relative):
        anchor = scene.shapes[head.anchor.judge(scene).ids[0]]
        return replace(head, of=match, anchor=_described(head.anchor, anchor, stream))
    return replace(head, of=match)


def _described(match: Match, shape: Shape, stream: Stream) -> Match:
    """Return the match with the shape's kind and one or two more of its attributes."""
    more = ["kind", *stream.sample(ADJECTIVE_ORDER, stream.between(1, 2))]
    excluded = match.without[0] if match.without else None
    values = {name: getattr(shape, name) for name in more if name != excluded}
    values = {name: value for name, value in values.items() if value not in v.UNSAID}
    return Match(**(values | match.given), without=match.without)


def _long_group(match: Match, stream: Stream) -> str:
    words = ["the"]
    words += [stream.choice(v.ADJECTIVES[name][match.given[name]]) for name in ADJECTIVE_ORDER if name in match.given]
    noun = stream.choice(v.KIND_NOUNS[match.kind] if match.kind else v.ANY_NOUNS)[0]
    return " ".join([*words, noun])


def _long_clause(head: Head, stream: Stream) -> str:
    """Return the words after the noun."""
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
    lead = stream.choice(v.LONG_CLAUSES)
    if head.side in SIDES:
        lead = stream.choice(v.LONG_SEEN)
    return f"{lead} {stream.choice(v.LONG_RELATIONS[head.side]).format(anchor=_long_group(head.anchor, stream))}"
