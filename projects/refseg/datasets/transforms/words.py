"""Transforms of the texts alone: words are left out, and the tags that tie words to instances follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refseg.datasets.transforms.state import TransformState, check_fraction
from refseg.records import Expression
from refseg.registry import TRANSFORMS

ARTICLES = frozenset(("a", "an", "the"))
WORD_TAGS = ("words", "anchor_words")  # instance id -> indices of the text's words

# Without one of these a phrase means something else, not merely less.
NEGATION = "no not non none nor neither never nothing nobody without except excluding but cannot isnt arent dont doesnt"
SIDES = (
    "top bottom upper lower middle center centre corner side edge end front back behind above below under over "
    "between inside outside next near nearest far farthest furthest close closest beside first last horizontal vertical"
)
NUMBERS = (
    "one two three four five six seven eight nine ten second third fourth fifth sixth seventh eighth ninth tenth "
    "both all each every single pair couple only other another"
)
COMPARISON = "more less most least than same"
KEPT_WORDS = frozenset(f"{NEGATION} {SIDES} {NUMBERS} {COMPARISON}".split())
KEPT_FORMS = re.compile(r"left|right|n't$|\d|(?:er|est)$")  # also sides in any form, digits, comparatives


def may_drop(word: str) -> bool:
    """Whether a word (with its punctuation) may be left out of a phrase at random."""
    plain = word.lower().strip(".,;:!?\"'()")
    return plain not in KEPT_WORDS and KEPT_FORMS.search(plain) is None


def keep_words(expression: Expression, kept: Sequence[int]) -> Expression:
    """The expression with those of its words (by index, ascending); the tags' indices are those of the new text."""
    words = expression.text.split()
    place = {old: new for new, old in enumerate(kept)}
    tags: dict[str, Any] = dict(expression.tags)
    for name in WORD_TAGS:
        if name in tags:
            tags[name] = {key: [place[i] for i in indices if i in place] for key, indices in tags[name].items()}
    return replace(expression, text=" ".join(words[i] for i in kept), tags=tags)


def without_articles(expression: Expression) -> Expression:
    words = expression.text.split()
    kept = [i for i, word in enumerate(words) if word.lower() not in ARTICLES]
    return expression if len(kept) in (0, len(words)) else keep_words(expression, kept)


@TRANSFORMS.register_module()
class DropArticles:
    """Leaves "a", "an" and "the" out of every text, in training and evaluation alike."""

    def __call__(self, state: TransformState) -> TransformState:
        state.rewrite([without_articles(expression) for expression in state.expressions], self)
        return state


@TRANSFORMS.register_module()
class TextDrop:
    """With `chance`, leaves out each word of a text with probability `rate`, but never all of them.

    Words of negation, side, order, number and comparison stay (`may_drop`), and expressions without referents stay
    whole: "the red bus" where there is a blue one only would come to refer to it as "the bus".
    """

    def __init__(self, *, chance: float, rate: float) -> None:
        self.chance = check_fraction(self, "chance", chance)
        self.rate = check_fraction(self, "rate", rate)

    def __call__(self, state: TransformState) -> TransformState:
        state.rewrite([self._drop(expression, state) for expression in state.expressions], self)
        return state

    def _drop(self, expression: Expression, state: TransformState) -> Expression:
        if not expression.referents or state.rng.random() >= self.chance:
            return expression
        words = expression.text.split()
        draws = state.rng.random(len(words))
        kept = [i for i, word in enumerate(words) if draws[i] >= self.rate or not may_drop(word)]
        if len(kept) == len(words):
            return expression
        return keep_words(expression, kept or [int(draws.argmax())])
