"""Pairs for any data, by rules on words.

The truth of a changed phrase is known if the data have that phrase for the image, or if it names an object that the
image lacks. For other phrases, only whether the answer changes can be measured.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

from refseg.analysis.probes.measure import KINDS, Pair
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
COLORS = ("red", "green", "blue", "yellow", "purple", "white", "black", "brown", "pink", "gray", "grey")
PERSON = ("person", "man", "woman", "boy", "girl", "guy", "lady", "kid", "child", "player", "people", "men", "women")
# "right" where it is not a side
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


def swap(text: str, words: dict[str, str]) -> str:
    """Replace every word of the table, all at once, and keep capitals."""

    def other(match: re.Match) -> str:
        word = match[0]
        new = words.get(word.lower(), word)
        return new.capitalize() if word[:1].isupper() and new != word else new

    return re.sub(r"[^\W\d_]+", other, text)


def change_text(kind: str, text: str, seed: int) -> str:
    """Apply the rule of a kind (any but "absent"). Return the text as it is if the rule does not fit."""
    if kind == "left-right":
        return text if _NO_SIDE.search(text.lower()) else swap(text, SWAPS[kind])
    if kind == "above-below":
        return swap(text, SWAPS[kind])
    if kind == "number":
        return swap(text, ORDINALS)
    if kind == "color":
        # The first color becomes one that the phrase does not have.
        words = re.findall(r"[^\W\d_]+", text.lower())
        color = next((word for word in words if word in COLORS), None)
        if color is None:
            return text
        others = [other for other in COLORS if other not in words and {other, color} != {"gray", "grey"}]
        return re.sub(rf"\b{color}\b", others[seed % len(others)], text, count=1, flags=re.IGNORECASE)
    # Negation, by the first rule that fits: drop a "not", turn "without" into "with", or add a "not".
    for pattern, new in _NEGATIONS:
        if pattern.search(text):
            return pattern.sub(new, text, count=1)
    return text


def name_absent(text: str, category: str, absent: Sequence[str], seed: int) -> str:
    """Replace the category's name (for persons, any word for one) by the name of a category that the image lacks."""
    names = (category, f"{category}s", *(PERSON if category == "person" else ()))
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b", re.IGNORECASE)
    others = [name for name in absent if name.lower() not in text.lower()]
    return pattern.sub(others[seed % len(others)], text, count=1) if others else text


def pairs_by_rule(
    truth: Truth, chosen: Sequence[Expression], everything: Sequence[Expression], categories: Sequence[str]
) -> Iterator[Pair]:
    """Yield, for each chosen expression with a target, one pair of every kind whose rule changes it.

    Args:
        everything: All expressions that the data have for the image.
        categories: Categories of the data set.
    """
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
        target_categories = {record.instances[i].category for i in expression.referents}
        for kind in KINDS:
            # Change the phrase.
            changed, changed_truth = expression.text, None
            if kind != "absent":
                changed = change_text(kind, expression.text, seed)
            elif len(target_categories) == 1 and absent:
                changed = name_absent(expression.text, str(*target_categories), absent, seed)
                changed_truth = union_rle([], size)
            if _plain(changed) == _plain(expression.text):
                continue
            # Take its truth from the data, if they have the changed phrase.
            known = by_text.get(_plain(changed))
            if known is not None:
                if set(known.referents) == set(expression.referents):
                    continue  # both phrases mean the same
                changed_truth = mask(known)
            yield Pair(kind, expression.expression_id, expression.text, changed, mask(expression), changed_truth)


def _plain(text: str) -> str:
    """Return the text in lower case without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
