from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.datasets.transforms import RandomFlip, TextDrop, TransformState
from refseg.datasets.transforms.text import keep_words, may_drop
from refseg.records import Expression
from transform_states import make_state

IMAGE = np.zeros((2, 2, 3), np.uint8)


def grounded(text: str, referents: tuple[int, ...] = (0,)) -> Expression:
    """Return an expression with tags: all words describe instance 0, and the last one also the anchor, instance 1."""
    count = len(text.split())
    return Expression(
        "e", text, referents, tags={"words": {"0": [*range(count)]}, "anchor_words": {"1": [count - 1]}, "n": 3}
    )


def test_tags_refer_to_the_remaining_words() -> None:
    kept = keep_words(grounded("one big red star"), [1, 3])
    assert kept.text == "big star" and kept.tags["words"] == {"0": [0, 1]} and kept.tags["anchor_words"] == {"1": [1]}
    assert keep_words(Expression("e", "a b", (0,), tags={"skill": "x"}), [1]).tags == {"skill": "x"}


@pytest.mark.parametrize(
    "word", "not no, without left Right, rightmost leftmost top 2nd two bigger largest isn't behind".split()
)
def test_essential_words(word: str) -> None:
    assert not may_drop(word)


@pytest.mark.parametrize("word", "the red star striped is of that".split())
def test_words_that_may_be_dropped(word: str) -> None:
    assert may_drop(word)


@given(
    st.lists(st.sampled_from("the red star not left big of two".split()), min_size=1, max_size=8), st.integers(0, 2**32)
)
def test_some_words_remain_and_tags_refer_to_the_same_words(words: list[str], seed: int) -> None:
    """Each word describes its own instance, so the tags show which words remain."""
    tags = {"words": {i: [i] for i in range(len(words))}}
    state = TransformState(None, [Expression("e", " ".join(words), (0,), tags=tags)], np.random.default_rng(seed))
    (after,) = TextDrop(chance=1, rate=0.7)(state).expressions
    remaining = after.text.split()
    assert remaining
    for i, word in enumerate(words):
        places = after.tags["words"][i]
        assert [remaining[place] for place in places] in ([word], [])
        assert places or may_drop(word)
    assert sum(map(len, after.tags["words"].values())) == len(remaining)


def test_rate_and_chance() -> None:
    """100 droppable words at rate 0.3 leave about 70; with chance 0.5 about half of 200 texts change."""
    text = " ".join(["red"] * 100)
    state = TransformState(None, [grounded(text)] * 200, np.random.default_rng(0))
    lengths = [len(e.text.split()) for e in TextDrop(chance=0.5, rate=0.3)(state).expressions]
    assert 70 < lengths.count(100) < 130
    changed = [length for length in lengths if length < 100]
    assert 67 < sum(changed) / len(changed) < 73
    assert [e.text for e in TextDrop(chance=1, rate=1)(state).expressions] == ["red"] * 200


def test_expressions_without_referents_are_unchanged() -> None:
    state = TransformState(None, [grounded("red star", ())], np.random.default_rng(0))
    assert TextDrop(chance=1, rate=1)(state).expressions[0].text == "red star"


def test_flip_keeps_the_tags() -> None:
    state = make_state(IMAGE, [], [("the left star", ())])
    state.expressions[0].tags["words"] = {"0": [0, 1, 2]}
    state = RandomFlip(chance=1)(state)
    assert state.expressions[0].text == "the right star" and state.expressions[0].tags == {"words": {"0": [0, 1, 2]}}
