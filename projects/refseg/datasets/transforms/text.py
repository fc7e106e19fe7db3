"""Transforms of the texts: tokens, and augmentation that drops words. Tags that tie words to instances follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refseg.datasets.tokenizers import TextTokenizer, Tokenized
from refseg.datasets.transforms.state import TransformState, check_fraction
from refseg.records import Expression
from refseg.registry import TRANSFORMS

WORD_TAGS = ("words", "anchor_words")  # instance id -> indices of the text's words

# Dropping one of these changes what a phrase means.
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
ESSENTIAL_WORDS = frozenset(f"{NEGATION} {SIDES} {NUMBERS} {COMPARISON}".split())
ESSENTIAL_FORMS = re.compile(r"left|right|n't$|\d|(?:er|est)$")  # also sides in any form, digits, comparatives


@TRANSFORMS.register_module()
class LoadText:
    """Tokenize the texts.

    Args:
        tokenizer: Arguments of `TextTokenizer`.
    """

    def __init__(self, tokenizer: dict) -> None:
        self.tokenizer = TextTokenizer(**tokenizer)

    def __call__(self, state: TransformState) -> TransformState:
        state.tokens = self.tokenizer([expression.text for expression in state.expressions])
        return state


@TRANSFORMS.register_module()
class RawText:
    """Pass the texts on without tokens, for zero-shot models, which tokenize them themselves."""

    def __call__(self, state: TransformState) -> TransformState:
        count = len(state.expressions)
        state.tokens = Tokenized([[] for _ in range(count)], [[] for _ in range(count)], [()] * count)
        return state


@TRANSFORMS.register_module()
class TextDrop:
    """Drop random words of a text, but never all of them.

    Words of negation, side, order, number and comparison stay (`may_drop`). Expressions without referents stay whole:
    "the red bus" next to a blue bus would turn into "the bus", which refers to it.

    Args:
        chance: Probability that a text is changed.
        rate: Probability that a word of such a text is dropped.
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
        remaining = [i for i, word in enumerate(words) if draws[i] >= self.rate or not may_drop(word)]
        if len(remaining) == len(words):
            return expression
        return keep_words(expression, remaining or [int(draws.argmax())])


def may_drop(word: str) -> bool:
    """Return whether a word (with its punctuation) may be dropped from a phrase at random."""
    plain = word.lower().strip(".,;:!?\"'()")
    return plain not in ESSENTIAL_WORDS and ESSENTIAL_FORMS.search(plain) is None


def keep_words(expression: Expression, indices: Sequence[int]) -> Expression:
    """Return the expression with only the words at these ascending indices. Its tags refer to the new text."""
    words = expression.text.split()
    new_index = {old: new for new, old in enumerate(indices)}
    tags: dict[str, Any] = dict(expression.tags)
    for name in WORD_TAGS:
        if name in tags:
            tags[name] = {key: [new_index[i] for i in old if i in new_index] for key, old in tags[name].items()}
    return replace(expression, text=" ".join(words[i] for i in indices), tags=tags)
