"""Pairs of any data, by rules on words. The truth of a changed phrase is known where the data have that phrase for the
image, and for objects that nobody annotated in it; elsewhere only whether the answer changes can be measured."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence

from refseg.analysis.probes.pairs import KINDS, Pair
from refseg.evaluation.measure import Truth
from refseg.evaluation.overlap import union_rle
from refseg.records import Expression

_PAIRS = {
    "left-right": "left right, leftmost rightmost, lefthand righthand",
    "above-below": "top bottom, upper lower, above below, topmost bottommost, highest lowest",
}
SWAPS = {
    kind: {a: b for pair in pairs.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
    for kind, pairs in _PAIRS.items()
}
ORDINALS = {"first": "second", "second": "third", "third": "second", "fourth": "third"}
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black", "brown", "pink", "gray", "grey")
PERSON = ("person", "man", "woman", "boy", "girl", "guy", "lady", "kid", "child", "player", "people", "men", "women")
# "right" that is no side, and "in" that is part of another word.
_NO_SIDE = re.compile(r"\bright (?:next|behind|in|above|below|under|beside|there|now|by)\b")
_NEGATIONS = (
    (re.compile(r"\b(?:that |which |who )?(is|are) not\b"), r"\1"),
    (re.compile(r"\b(is|are)n't\b"), r"\1"),
    (re.compile(r"\bnot "), ""),
    (re.compile(r"\bwithout\b"), "with"),
    (re.compile(r"\bwith\b"), "without"),
    (re.compile(r"\b(wearing|holding)\b"), r"not \1"),
    (re.compile(r"\b(that|which|who) (is|are)\b"), r"\1 \2 not"),
)

Rule = Callable[[str, int], str]


def swap(text: str, words: dict[str, str]) -> str:
    """Every word of the table is exchanged, all at once; capitals stay."""

    def other(found: re.Match) -> str:
        word = found[0]
        new = words.get(word.lower(), word)
        return new.capitalize() if word[:1].isupper() and new != word else new

    return re.sub(r"[^\W\d_]+", other, text)


def swap_left_right(text: str, seed: int) -> str:
    return text if _NO_SIDE.search(text.lower()) else swap(text, SWAPS["left-right"])


def swap_above_below(text: str, seed: int) -> str:
    return swap(text, SWAPS["above-below"])


def change_rank(text: str, seed: int) -> str:
    return swap(text, ORDINALS)


def change_colour(text: str, seed: int) -> str:
    """The first colour becomes one that the phrase does not have."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = next((word for word in words if word in COLOURS), None)
    if found is None:
        return text
    others = [colour for colour in COLOURS if colour not in words and {colour, found} != {"gray", "grey"}]
    new = others[seed % len(others)]
    return re.sub(rf"\b{found}\b", new, text, count=1, flags=re.IGNORECASE)


def change_negation(text: str, seed: int) -> str:
    """The first rule that fits: a "not" goes, "without" becomes "with", or else a "not" comes."""
    for pattern, new in _NEGATIONS:
        if pattern.search(text):
            return pattern.sub(new, text, count=1)
    return text


RULES: dict[str, Rule] = {
    "left-right": swap_left_right,
    "above-below": swap_above_below,
    "colour": change_colour,
    "number": change_rank,
    "negation": change_negation,
}


def name_absent(text: str, category: str, absent: Sequence[str], seed: int) -> str:
    """The category's word, or for persons one of theirs, becomes the name of a category that the image lacks."""
    names = (category, f"{category}s", *(PERSON if category == "person" else ()))
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b", re.IGNORECASE)
    others = [name for name in absent if name.lower() not in text.lower()]
    return pattern.sub(others[seed % len(others)], text, count=1) if others else text


def pairs_by_rule(
    truth: Truth, chosen: Sequence[Expression], everything: Sequence[Expression], categories: Sequence[str]
) -> Iterator[Pair]:
    """Of each chosen expression with a target, one pair of every kind whose rule changes it. `everything`: all that the
    data say of the image; `categories`: of the data set."""
    record, size = truth.record, truth.record.size
    present = {instance.category for instance in record.instances}
    absent = [name for name in categories if name not in present] if None not in present else []
    by_text = {_plain(expression.text): expression for expression in everything}

    def mask(expression: Expression) -> dict:
        return union_rle([truth.instance_rle(i) for i in expression.referents], size)

    for expression in chosen:
        if not expression.referents:
            continue
        seed = zlib.crc32(expression.expression_id.encode())
        own = {record.instances[i].category for i in expression.referents}
        for kind in KINDS:
            changed, after = expression.text, None
            if kind in RULES:
                changed = RULES[kind](expression.text, seed)
            elif len(own) == 1 and absent:
                changed, after = name_absent(expression.text, str(*own), absent, seed), union_rle([], size)
            if _plain(changed) == _plain(expression.text):
                continue
            said = by_text.get(_plain(changed))
            if said is not None:
                if set(said.referents) == set(expression.referents):
                    continue  # another way to mean the same
                after = mask(said)
            yield Pair(kind, expression.expression_id, expression.text, changed, mask(expression), after)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
