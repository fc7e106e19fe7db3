"""Words of each instance, and captions with bars under them."""

import math

import numpy as np
import pytest

from refseg.visualization.overlay import PALETTE, PREDICTION_COLOR
from refseg.visualization.word_bars import (
    INSTANCE_COLORS,
    bars,
    caption_with_bars,
    instance_phrases,
    numbers,
    word_owners,
    words_by_instance,
)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.1, 0.6, 0.3], [1, 2]),  # 0.3 is half of 0.6
        ([0.1, 0.61, 0.29], [1]),
        ([0.0, 1 / 3, 1 / 3, 1 / 3], [1, 2, 3]),
        ([0.25] * 4, [0, 1, 2, 3]),
        ([0.01, 0.02], [0, 1]),  # the sum may be small: tokens that are no words have the rest
        ([0.7], [0]),
        ([0.0, 0.0], []),
        ([math.nan, 0.2, math.inf], [1]),
        ([], []),
        (None, []),
    ],
)
def test_words_by_instance(weights, words):
    text = " ".join(["red", "star", "box", "plus"][: len(weights or ())])
    assert words_by_instance(text, [weights]) == [words]


def test_only_content_words_belong_to_an_instance():
    """The weight of "the" does not raise the limit. Punctuation is not part of a word."""
    assert instance_phrases("the box to the left of that", [[0.9, 0.4, 0.9, 0.9, 0.7, 0.9, 0.9]]) == ["box left"]
    assert instance_phrases("the one that is of them", [[0.9] * 6]) == [""]
    assert words_by_instance("The, box; (that) isn't blue. ?", [[0.9] * 6]) == [[1, 3, 4]]


def test_instances_are_independent():
    weights = [[0.1, 0.5, 0.4], None, [0.9, 0.0, 0.2]]
    assert words_by_instance("the  red star", weights) == [[1, 2], [], [2]]
    assert instance_phrases("the  red star", weights) == ["red star", "", "star"]
    assert word_owners("the  red star", weights) == [(), (0,), (0, 2)]


def test_no_instances():
    assert instance_phrases("the red star", []) == []
    assert word_owners("red star", []) == [(), ()]
    assert word_owners("", [[]]) == []


def test_numbers_start_at_one_and_form_ranges():
    cases = {(): "", (0,): "1", (0, 1): "1, 2", (0, 1, 2, 4): "1-3, 5", (1, 3, 4, 5, 17): "2, 4-6, 18"}
    assert {instances: numbers(instances) for instances in cases} == cases


def test_colors_are_the_palette():
    assert set(INSTANCE_COLORS) == set(PALETTE)
    assert PREDICTION_COLOR not in INSTANCE_COLORS[:5], "few instances do not look like a merged mask"


def test_one_bar_per_color():
    assert bars((0, 2)) == [0, 2]
    assert bars((2, 7, 9)) == [2, 0], "instances 2 and 9 share a color"
    assert len(bars(tuple(range(18)))) == 7


def _rows_of(strip, color):
    """Return the first and the last column of a color, by row."""
    rows = {}
    for row in np.flatnonzero((strip == color).all(2).any(1)):
        columns = np.flatnonzero((strip[row] == color).all(1))
        rows[int(row)] = (int(columns[0]), int(columns[-1]))
    return rows


def test_bars_are_below_their_words():
    """ "red star" is one run of instance 0, "circle" of 0 and 1: there the second bar lies below the first."""
    strip = caption_with_bars("red star and circle", [(0,), (0,), (), (0, 1)], 600)
    first_bar, second_bar = (_rows_of(strip, color) for color in INSTANCE_COLORS[:2])
    assert len({*first_bar.values()}) == 1, "both runs of the first bar are on one level"
    (first, last), (left, right) = next(iter(first_bar.values())), next(iter(second_bar.values()))
    assert right == last and left > first
    row = strip[min(first_bar)]
    assert (row[left - 10 : left - 2] == 255).all(), "no bar below the space before the word"
    assert not _rows_of(strip, INSTANCE_COLORS[2])
    assert min(second_bar) > max(first_bar)


def test_bars_wrap_with_their_words():
    """62 pixels have room for 50 of text: "a red" and "star" on a line each."""
    wide = caption_with_bars("a red star", [(0,)] * 3, 600)
    narrow = caption_with_bars("a red star", [(0,)] * 3, 62)
    levels = [np.diff([-9, *_rows_of(strip, INSTANCE_COLORS[0])]) > 1 for strip in (wide, narrow)]
    assert [level.sum() for level in levels] == [1, 2]


def test_a_line_without_bars_is_lower():
    with_bars = caption_with_bars("a b", [(0,), ()], 300)
    assert caption_with_bars("a b", [(), ()], 300).shape[0] < with_bars.shape[0]


@pytest.mark.parametrize("width", [1, 20, 160, 900])
@pytest.mark.parametrize("text", ["", "a", "x" * 300, "the " * 200, "القط الأسود", "🐱 e\u0301 \u200f\u2067z"])
def test_any_text_at_any_width(text, width):
    owners = [tuple(range(18)) if index % 2 else (index % 3,) for index in range(len(text.split()))]
    strip = caption_with_bars(text, owners, width)
    assert strip.shape[1:] == (width, 3) and strip.dtype == np.uint8


def test_long_text_is_cut():
    heights = [caption_with_bars("word " * count, [(0,)] * count, 100, max_lines=3).shape[0] for count in (30, 300)]
    assert heights[0] == heights[1]


def test_owners_for_other_words():
    with pytest.raises(ValueError):
        caption_with_bars("two words", [(0,)], 100)
