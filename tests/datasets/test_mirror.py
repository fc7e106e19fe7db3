from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.datasets.mirror import mirror_text


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("", ""),
        ("the red car", "the red car"),
        ("left", "right"),
        ("Left guy.", "Right guy."),
        ("RIGHT GUY", "LEFT GUY"),
        ("left of the right door", "right of the left door"),
        ("second from left to right", "second from right to left"),
        ("2nd from left", "2nd from right"),
        ("leftmost man, rightmost woman", "rightmost man, leftmost woman"),
        ("left most man", "right most man"),
        ("left-most, left-hand and lefthand", "right-most, right-hand and righthand"),
        ("top-left corner", "top-right corner"),
        ("topleft/bottomright", "topright/bottomleft"),
        ("looking leftward, going rightwards", "looking rightward, going leftwards"),
        ("lefter lefty on lhs", "righter righty on rhs"),
        ("left-handed batter", "right-handed batter"),
        ("triangle with a plus to its left", "triangle with a plus to its right"),
        ("the man's left hand", "the man's right hand"),
        ("guy on left in white", "guy on right in white"),
        ("person who is left of dog", "person who is right of dog"),
        ("man on the right behind the desk", "man on the left behind the desk"),
        ("  two   blanks left  ", "  two   blanks right  "),
        ("bright red upright piano", "bright red upright piano"),
        ("guy’s left foot", "guy’s right foot"),
        ("the one that's left of the tree", "the one that's right of the tree"),
        ("man to the left of what is red", "man to the right of what is red"),
        ("the left standing man", "the right standing man"),
        ("guy on left sitting", "guy on right sitting"),
        ("the left sign", "the right sign"),
        ("sign left of the door", "sign right of the door"),
        ("sign on the left", "sign on the right"),
    ],
)
def test_mirrored(text: str, mirrored: str) -> None:
    assert mirror_text(text) == mirrored


@pytest.mark.parametrize(
    "text",
    [
        # "right" as directly, correct, just; "left" as remaining or gone
        "right next to her", "man on right behind the desk", "dog right in front", "right by the door", "right there",
        "right on the edge", "right here", "right above", "right to the left of the car", "all right", "right angle",
        "right side up", "one slice left", "pizza left over", "the left over pizza", "what is left", "that's left",
        "its right by the door",
        "left behind", "left in the box", "only left", "right now",
        "what is left of the pizza", "what's left of the pizza", "what’s left of it", "whats right of it",
        "all that is left of the cake", "what has been left of it", "nothing left of it", "a slice left of the pizza",
        "man left standing", "man left sitting", "left lying on the floor", "right standing man", "left parked car",
        # directions on signs
        "right sign",
        "turn right sign", "turn left", "no left turn", "the right turn lane", "left arrow", "arrow right",
        # clock, compass, frames of their own
        "turned clockwise", "at 3 o'clock", "three oclock", "three o clock", "east side", "southwest corner",
        "driver's side", "passenger side door", "stage left",
        # to be read
        "player 10", "number ten", "letter a", "sign that says stop", "man with the word stop", 'the "b" shirt',
        "the 'b' shirt", "bus that reads x", "license plate 4x4", "3 people",
        # unknown spellings
        "rt guy", "l side", "rigth", "leftt", "LeFt", "rightish", "aleft", "lft most",
    ],
)  # fmt: skip
def test_unsafe_phrases_are_not_mirrored(text: str) -> None:
    assert mirror_text(text) is None


PIECES = (
    "left right Left RIGHT leftmost left-hand lefty man's that's the of in on to next is slice most behind front back "
    "middle over side up lhs bright 2nd 3 l what there standing turn sign the arrow all man , . / - ' \" İ ß"
)
words = st.sampled_from(PIECES.split())


@given(st.lists(words, max_size=8), st.sampled_from([" ", "  ", "-", ""]))
def test_mirroring_twice_returns_the_text(pieces: list[str], joint: str) -> None:
    text = joint.join(pieces)
    mirrored = mirror_text(text)
    if mirrored is not None:
        assert mirror_text(mirrored) == text
        assert len(mirrored.split()) == len(text.split())


@given(st.text(max_size=30))
def test_any_text_is_accepted(text: str) -> None:
    mirrored = mirror_text(text)
    assert mirrored is None or mirror_text(mirrored) == text
