"""Which words belong to which instance, and how a phrase shows it."""

import math

import numpy as np
import pytest

from refseg.visualization.word_bars import bars, caption_with_bars, numbers, owners_of_words, words_of_instances

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.1, 0.6, 0.3], [1, 2]),  # 0.3 is half of 0.6
        ([0.1, 0.61, 0.29], [1]),
        ([0.0, 1 / 3, 1 / 3, 1 / 3], [1, 2, 3]),  # three of four: 1.33 times the mean, which is not 1.5 times
        ([0.25] * 4, [0, 1, 2, 3]),
        ([0.01, 0.02], [1, 0]),  # the tokens that are no words may have the most; 0.01 is half of 0.02
        ([0.7], [0]),
        ([0.0, 0.0], []),
        ([math.nan, 0.2, math.inf], [1]),
        ([], []),
    ],
)
def test_words_of_instances_by_hand(weights, words):
    assert words_of_instances([weights]) == [sorted(words)]


def test_instances_do_not_depend_on_each_other():
    assert words_of_instances([[0.9, 0.0], [0.0, 0.1], []]) == [[0], [1], []]
    assert words_of_instances([]) == []


def test_owners_are_the_other_way_round():
    assert owners_of_words(4, [[1, 2], [], [2, 3]]) == [(), (0,), (0, 2), (2,)]
    assert owners_of_words(2, []) == [(), ()]
    assert owners_of_words(0, [[]]) == []


def test_numbers_count_from_one_and_join_neighbours():
    cases = {(): "", (0,): "1", (0, 1): "1, 2", (0, 1, 2, 4): "1-3, 5", (1, 3, 4, 5, 17): "2, 4-6, 18"}
    assert {instances: numbers(instances) for instances in cases} == cases


def test_bars_are_no_more_than_colors():
    assert bars((0, 2), 7) == [0, 2]
    assert bars((2, 7, 9), 7) == [2, 0], "instances 2 and 9 share a color"
    assert len(bars(tuple(range(18)), 7)) == 7


def _rows_of(strip, color):
    """The first and the last column of a color, by row."""
    rows = {}
    for row in np.flatnonzero((strip == color).all(2).any(1)):
        columns = np.flatnonzero((strip[row] == color).all(1))
        rows[int(row)] = (int(columns[0]), int(columns[-1]))
    return rows


def test_bars_lie_below_their_words():
    """ "red star" is one run of instance 0, "circle" of 0 and 1: there the second bar lies below the first."""
    strip = caption_with_bars("red star and circle", [(0,), (0,), (), (0, 1)], 600, colors=COLORS)
    red, green = _rows_of(strip, COLORS[0]), _rows_of(strip, COLORS[1])
    assert len({*red.values()}) == 1, "both runs of the first bar are on one level"
    (first, last), (left, right) = next(iter(red.values())), next(iter(green.values()))
    assert right == last and left > first
    row = strip[min(red)]
    assert (row[left - 10 : left - 2] == 255).all(), "no bar below the space before the word"
    assert not _rows_of(strip, COLORS[2])
    assert min(green) > max(red)


def test_bars_wrap_with_their_words():
    """50 pixels of 62 are left: "a red" and "star" on a line each."""
    wide = caption_with_bars("a red star", [(0,)] * 3, 600, colors=COLORS)
    narrow = caption_with_bars("a red star", [(0,)] * 3, 62, colors=COLORS)
    levels = [np.diff([-9, *_rows_of(strip, COLORS[0])]) > 1 for strip in (wide, narrow)]
    assert [level.sum() for level in levels] == [1, 2]


def test_a_line_without_owners_is_no_higher():
    with_bars = caption_with_bars("a b", [(0,), ()], 300, colors=COLORS)
    assert caption_with_bars("a b", [(), ()], 300, colors=COLORS).shape[0] < with_bars.shape[0]


@pytest.mark.parametrize("width", [1, 20, 160, 900])
@pytest.mark.parametrize("text", ["", "a", "x" * 300, "the " * 200, "القط الأسود", "🐱 e\u0301 \u200f\u2067z"])
def test_any_text_at_any_width(text, width):
    owners = [tuple(range(18)) if index % 2 else (index % 3,) for index in range(len(text.split()))]
    strip = caption_with_bars(text, owners, width, colors=COLORS)
    assert strip.shape[1:] == (width, 3) and strip.dtype == np.uint8


def test_long_text_stops():
    heights = [
        caption_with_bars("word " * count, [(0,)] * count, 100, colors=COLORS, max_lines=3).shape[0]
        for count in (30, 300)
    ]
    assert heights[0] == heights[1]


def test_owners_must_fit_the_words():
    with pytest.raises(ValueError):
        caption_with_bars("two words", [(0,)], 100, colors=COLORS)
