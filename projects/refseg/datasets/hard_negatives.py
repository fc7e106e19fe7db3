"""Phrases that refer to nothing in an image, made from the data: of other images, or with one word swapped.

A phrase is used only if the data prove it false, under one assumption: the phrases and categories of an image name all
objects of the kinds that the data set names. An instance is of a kind if its category, or a phrase about it alone, says
so. What cannot be proved is skipped. RefShapes mini breaks the assumption, since its phrases do not name every shape:
97 % of the phrases about another kind are false there, and all with another color (5,542 phrases).

    the red cup     -> the blue cup      every cup of the image has a color, and none is blue
    two dogs        -> three dogs        the image has exactly these two dogs
    the cup on the left -> ... right     the only cup is in the left half
    the red cup     -> the red dog       no phrase of the image names a dog
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask

from refseg.datasets.tokenizers import FUNCTION_WORDS
from refseg.records import AnnotatedInstance, Expression, Record

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
COLORS = tuple("red green blue yellow orange purple pink brown black white gray cyan magenta".split())
NUMBERS = tuple("one two three four five six".split())
SIDES = {"left": "right", "right": "left"}
# Words that name no kind of object, besides function words
NO_KIND = frozenset(
    (
        *COLORS, *NUMBERS, *SIDES, "grey", "all", "both", "each", "every", "any", "other", "another", "same", "only",
        *"big large small tiny little huge long short tall old young new dark light bright front back top bottom upper "
        "lower middle center side corner edge part piece half end row picture photo image scene background foreground "
        "thing object item group pair couple first second third last next near nearest far farthest behind above below "
        "under over between inside outside beside standing sitting wearing holding looking facing lying leftmost "
        "rightmost topmost bottommost uppermost higher one ones shape figure".split(),
    )
)  # fmt: skip
NOT_PARTICIPLES = frozenset("building painting ceiling earring clothing string railing awning".split())
PLACES = frozenset("above below under over between inside outside beside behind near nearest next higher lower".split())
IRREGULAR = {"men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot"}
DETERMINERS = frozenset("a an the this that these those his her its their my".split())
# Phrases with these words are not changed: they join or exclude several things
JOINING = frozenset("and or also plus as not no non none nor neither never nobody without except excluding but".split())


def kinds_in(text: str) -> set[str]:
    """Return the words of a phrase that may name a kind of object, in the singular."""
    words = (singular(word) for word in WORD.findall(text.lower()) if not word.endswith("est"))
    return {word for word in words if word not in NO_KIND and word not in FUNCTION_WORDS and len(word) > 1}


def kind_of(text: str) -> str:
    """Return the kind of object that a phrase is about, its first noun by rule; empty if there is none.

    It ends the words before the first preposition, verb or participle: "striped cup" in "the striped cup on the table",
    "man" in "a man holding a cup".
    """
    words, kind = WORD.findall(text.lower()), ""
    for word in words if not JOINING & set(words) else ():
        participle = word.endswith("ing") and len(word) > 5 and word not in NOT_PARTICIPLES
        if word in DETERMINERS or (participle and not kind):
            continue
        if (word in FUNCTION_WORDS and word not in ("one", "ones")) or word in PLACES or participle:
            break
        kind = word
    return next(iter(kinds_in(kind)), "")


def singular(word: str) -> str:
    """Return a noun in the singular, by the regular rules."""
    for ending, other in (("ies", "y"), ("uses", "us"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + other
    if word in IRREGULAR:
        return IRREGULAR[word]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


class Kinds:
    """The kinds of objects that a data set names, and which of them are names of the same objects.

    Args:
        images: What the data say about each image.
        categories: Names of categories.
    """

    def __init__(self, images: Iterable[Evidence], categories: Collection[str]) -> None:
        counts: Counter[str] = Counter()
        self._parent: dict[str, str] = {}
        for evidence in images:
            for expression in evidence.record.expressions:
                if expression.referents and (kind := kind_of(expression.text)):
                    counts[kind] += 1
            # "man", "guy" and "person" said of one object are names of the same objects
            for kinds in evidence.kinds:
                for one in kinds:
                    self._parent[self._root(one)] = self._root(min(kinds))
        counts.update({kind: 2 for category in categories if (kind := kind_of(category))})
        self.names = sorted(kind for kind, count in counts.items() if count > 1)

    def _root(self, kind: str) -> str:
        while self._parent.get(kind, kind) != kind:
            kind = self._parent[kind]
        return kind

    def roots(self, kinds: Iterable[str]) -> set[str]:
        """Return one name for all that name the same objects."""
        return {self._root(kind) for kind in kinds}

    def absent(self, evidence: Evidence) -> list[str]:
        """Return the kinds that nothing in an image is known to be."""
        present = self.roots(evidence.words)
        return [kind for kind in self.names if self._root(kind) not in present]


def plural(word: str) -> str:
    """Return a noun in the plural, by the regular rules."""
    if word in IRREGULAR.values():
        return next(many for many, one in IRREGULAR.items() if one == word)
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


@dataclass(slots=True)
class Evidence:
    """Facts about one image, as its annotations give them.

    Args:
        record: The image with all its instances and all its expressions.
        kinds: For each instance, the kinds that its category or a phrase about it alone names.
        texts: For each instance, the phrases that refer to it.
        words: All kinds that the image's phrases and categories name.
    """

    record: Record
    kinds: list[set[str]] = field(init=False)
    texts: list[list[str]] = field(init=False)
    words: set[str] = field(init=False)

    def __post_init__(self) -> None:
        instances = self.record.instances
        self.kinds = [kinds_in(one.category or "") for one in instances]
        self.texts = [[] for _ in instances]
        self.words = set().union(*self.kinds) if instances else set()
        for expression in self.record.expressions:
            named = kinds_in(expression.text)
            if expression.referents:  # an absent object is named, too, but is not there
                self.words |= named
            for index in expression.referents:
                self.texts[index].append(expression.text.lower())
                if len(expression.referents) == 1 and (kind := kind_of(expression.text)):
                    self.kinds[index].add(kind)

    def of_kind(self, kind: str) -> list[int] | None:
        """Return the instances of a kind; None if the kind of some instance is unknown."""
        if not all(self.kinds):
            return None
        return [index for index, kinds in enumerate(self.kinds) if kind in kinds]


def swapped(expression: Expression, evidence: Evidence, kinds: Kinds, rng: np.random.Generator) -> str:
    """Return the phrase with one word swapped such that the data prove it false; empty if no rule applies.

    Args:
        expression: A phrase with referents.
        evidence: Of its image.
        kinds: Of the data set.
        rng: Source of the choice.
    """
    if JOINING & set(WORD.findall(expression.text.lower())) or not kinds_in(expression.text) <= set(kinds.names):
        return ""
    rules = [swap_color, swap_number, swap_side, swap_kind]
    for index in rng.permutation(len(rules)):
        if text := rules[index](expression, evidence, kinds, rng):
            return text
    return ""


def swap_color(expression: Expression, evidence: Evidence, kinds: Kinds, rng: np.random.Generator) -> str:
    """Swap the color in "COLOR KIND", if every object of that kind is known to have another color."""
    words = WORD.findall(expression.text.lower())
    colors = [word for word in words if word in COLORS]
    named = kinds_in(expression.text)
    if len(colors) != 1 or len(named) != 1 or words.index(colors[0]) + 1 == len(words):
        return ""
    kind = singular(words[words.index(colors[0]) + 1])
    present = evidence.of_kind(kind) if kind in named else None
    if not present:
        return ""
    taken: set[str] = set()
    for index in present:
        known = {word for text in evidence.texts[index] for word in WORD.findall(text) if word in COLORS}
        if not known:
            return ""
        taken |= known
    return replace_word(expression.text, colors[0], pick([color for color in COLORS if color not in taken], rng))


def swap_number(expression: Expression, evidence: Evidence, kinds: Kinds, rng: np.random.Generator) -> str:
    """Swap the number in "NUMBER KINDs", if these are all objects of that kind."""
    words = WORD.findall(expression.text.lower())
    named = kinds_in(expression.text)
    if len(named) != 1 or len(words) < 2 or words[0] not in NUMBERS[1:] or len(words) > 2:
        return ""
    (kind,) = named
    present = evidence.of_kind(kind)
    if present is None or sorted(expression.referents) != present or NUMBERS.index(words[0]) + 1 != len(present):
        return ""
    more = [number for number in NUMBERS if NUMBERS.index(number) + 1 > len(present)]
    return replace_word(expression.text, words[0], pick(more, rng))


def swap_side(expression: Expression, evidence: Evidence, kinds: Kinds, rng: np.random.Generator) -> str:
    """Swap left and right, if the only object of its kind is clearly in one half of the image."""
    words = WORD.findall(expression.text.lower())
    sides = [word for word in words if word in SIDES]
    named = kinds_in(expression.text)
    if len(sides) != 1 or len(named) != 1 or len(expression.referents) != 1:
        return ""
    (kind,) = named
    if evidence.of_kind(kind) != list(expression.referents):
        return ""
    box = box_of(evidence.record.instances[expression.referents[0]])
    width = evidence.record.size[1]
    if box is None:
        return ""
    inside = box[0] + box[2] <= 0.5 * width if sides[0] == "left" else box[0] >= 0.5 * width
    return replace_word(expression.text, sides[0], SIDES[sides[0]]) if inside else ""


def box_of(instance: AnnotatedInstance) -> Sequence[float] | None:
    """Return the (x, y, width, height) of an instance; None if its mask is in a file."""
    if instance.box is not None:
        return instance.box
    if isinstance(instance.segmentation, dict):
        return coco_mask.toBbox(instance.segmentation).tolist()
    if not isinstance(instance.segmentation, list) or not instance.segmentation:
        return None
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in instance.segmentation])
    return [*points.min(0), *np.ptp(points, axis=0)]


def swap_kind(expression: Expression, evidence: Evidence, kinds: Kinds, rng: np.random.Generator) -> str:
    """Swap the only kind that a phrase names for one that nothing in the image is."""
    named = kinds_in(expression.text)
    if len(named) != 1:
        return ""
    (kind,) = named
    old = [word for word in WORD.findall(expression.text.lower()) if singular(word) == kind]
    new = pick(kinds.absent(evidence), rng)
    if len(old) != 1 or not new:
        return ""
    return replace_word(expression.text, old[0], new if old[0] == kind else plural(new))


def from_elsewhere(text: str, evidence: Evidence, kinds: Kinds) -> bool:
    """Return whether a phrase of another image refers to nothing here: the image has none of the kinds it names."""
    named = kinds_in(text)
    return bool(named & set(kinds.names)) and not kinds.roots(named) & kinds.roots(evidence.words)


def replace_word(text: str, old: str, new: str) -> str:
    """Replace a word, and keep a capital letter; empty if there is no new word."""
    if not new:
        return ""
    return re.sub(
        rf"\b{re.escape(old)}\b",
        lambda found: new.capitalize() if found[0][:1].isupper() else new,
        text,
        count=1,
        flags=re.IGNORECASE,
    )


def pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))] if words else ""
