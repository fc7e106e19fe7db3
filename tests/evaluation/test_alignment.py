"""Phrase-instance alignment: numbers by hand, chance by enumeration."""

from __future__ import annotations

import json
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.alignment import (
    AlignedPhrase,
    TrueInstance,
    align,
    align_predictions,
    alignment_scores,
    average_precision,
    distinguishing,
    match_masks,
    pointing,
    true_instances,
)
from refseg.evaluation.measure import Truth
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.scorer import open_data
from refseg.instance import Instance
from refseg.records import AnnotatedInstance, Expression, Record


def rle(x: int, width: int) -> dict:
    """Columns x to x + width of a 10 x 10 image."""
    pixels = np.zeros((10, 10), np.uint8, order="F")
    pixels[:, x : x + width] = 1
    return coco_mask.encode(pixels)


def test_pointing() -> None:
    assert pointing([0.1, 0.7, 0.2], frozenset({1})) == 1.0 and pointing([0.1, 0.7, 0.2], frozenset({0, 2})) == 0.0
    assert pointing([0.4, 0.4, 0.2], frozenset({1})) == 0.5


def test_average_precision() -> None:
    """The order is 2, 0, 1, 3. Words 2 and 1 are at places 1 and 3: (1/1 + 2/3) / 2. A word in the last place: 1/4."""
    assert average_precision([0.3, 0.2, 0.4, 0.1], frozenset({1, 2})) == pytest.approx(5 / 6)
    assert average_precision([0.3, 0.2, 0.4, 0.1], frozenset({3})) == 0.25
    assert average_precision([1, 1], frozenset({0})) == pytest.approx(3 / 4)  # first or second: (1 + 1/2) / 2
    assert average_precision([5, 1, 1], frozenset({0, 2})) == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.data())
def test_ties_average_over_orders(weights: list[int], data: st.DataObject) -> None:
    """The mean is over all orders that sort the weights. All weights equal is the chance level."""
    words = data.draw(st.frozensets(st.integers(0, len(weights) - 1), min_size=1))
    values = []
    for order in permutations(range(len(weights))):
        if all(weights[a] >= weights[b] for a, b in pairwise(order)):
            places = [place for place, word in enumerate(order, start=1) if word in words]
            values.append(np.mean([number / place for number, place in enumerate(places, start=1)]))
    assert average_precision(weights, words) == pytest.approx(np.mean(values))


def test_matching() -> None:
    """The better of two predictions on a shape is matched. IoU 4/8 is enough, 4/9 is not. The sum of IoUs decides: the
    best pair 0-0 (4/5) would leave 1-1 (1/5), and 0-1 (3/4) with 1-0 (3/5) have a larger sum."""
    assert match_masks([rle(0, 4), rle(0, 3)], [rle(0, 4)]) == [(0, 0, 1.0)]
    assert match_masks([rle(0, 4)], [rle(0, 8)]) == [(0, 0, 0.5)] and match_masks([rle(0, 4)], [rle(0, 9)]) == []
    predicted, true = [rle(1, 4), rle(3, 3)], [rle(1, 5), rle(1, 3)]
    pairs = match_masks(predicted, true)
    assert [(p, t) for p, t, _ in pairs] == [(0, 1), (1, 0)]
    assert [iou for *_, iou in pairs] == pytest.approx([3 / 4, 3 / 5])
    assert match_masks([], true) == [] and match_masks(predicted, []) == []


def test_align_one_expression() -> None:
    """ "red star and box": star {0, 1}, box {3}. The first prediction is the box, and points at "box"; the second is
    the star, and ranks and (2), red (0), box (3), star (1): no hit, AP (1/2 + 2/4) / 2. Chance: 1/4 and, for the one
    word, (1 + 1/2 + 1/3 + 1/4) / 4; for the star's two words 2/4."""
    predicted = [
        Instance(rle(5, 5), 0.9, [0.0, 0.0, 0.1, 0.9]),
        Instance(rle(0, 4), 0.9, [0.3, 0.1, 0.4, 0.2]),
    ]
    true = [TrueInstance(rle(0, 5), frozenset({0, 1})), TrueInstance(rle(5, 5), frozenset({3}))]
    phrase = align(predicted, true, num_words=4)
    box, star = phrase.aligned
    assert phrase.instances == 2 and (box.pointing, box.average_precision) == (1.0, 1.0)
    assert box.chance_pointing == 0.25 and box.chance_average_precision == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    )
    assert (star.pointing, star.average_precision, star.chance_pointing) == (0.0, 0.5, 0.5)
    assert star.iou == pytest.approx(0.8)

    missed = align(predicted[:1], true, num_words=4)
    scores = alignment_scores([phrase, missed])
    assert scores["instances"] == 4 and scores["matched"] == 3 and scores["coverage"] == 75.0
    assert scores["pointing"] == pytest.approx(200 / 3) and scores["AP"] == pytest.approx(100 * 2.5 / 3)
    assert scores["pointing_chance"] == pytest.approx(100 / 3)


def test_distinguishing_words() -> None:
    """ "both circles and the star": the circles share their words, but the star does not, so they distinguish. Words of
    a single instance, or words that all share ("red" in "all red shapes"), do not count."""
    circles, star = frozenset({0, 1}), frozenset({3, 4})
    shapes = [TrueInstance(rle(0, 2), circles), TrueInstance(rle(2, 2), circles), TrueInstance(rle(4, 2), star)]
    assert [shape.words for shape in distinguishing(shapes)] == [circles, circles, star]
    red = [TrueInstance(rle(0, 2), frozenset({1, 2})), TrueInstance(rle(2, 2), frozenset({1, 2, 3}))]
    assert [shape.words for shape in distinguishing(red)] == [frozenset(), frozenset({3})]
    phrase = align([Instance(rle(0, 2), 0.9, [1, 0, 0, 0])], red, num_words=4, only_distinguishing=True)
    assert phrase == AlignedPhrase(1, [])
    assert distinguishing([]) == [] and align([], red[:1], num_words=4, only_distinguishing=True).instances == 0


def test_no_instances() -> None:
    assert align([Instance(rle(0, 2), 0.9, [1.0])], [], num_words=1) == AlignedPhrase(0, [])
    scores = alignment_scores([])
    assert scores["coverage"] is None and scores["pointing"] is None and scores["instances"] == 0


def test_invalid_weights() -> None:
    with pytest.raises(ValueError, match="3 weights, but the text has 4 words"):
        align([Instance(rle(0, 2), 0.9, [1, 2, 3])], [], num_words=4)
    with pytest.raises(ValueError, match="finite"):
        align([Instance(rle(0, 2), 0.9, [1, float("nan")])], [], num_words=2)


def test_instances_without_weights() -> None:
    """They are ignored, and do not block a shape for another prediction."""
    true = [TrueInstance(rle(0, 5), frozenset({0}))]
    without, weighted = Instance(rle(0, 5), 0.9), Instance(rle(0, 4), 0.5, [1.0])
    assert [one.iou for one in align([without, weighted], true, num_words=1).aligned] == pytest.approx([0.8])
    assert align([without], true, num_words=1) == AlignedPhrase(1, [])


def test_true_instances_from_tags() -> None:
    """Instance ids are strings in JSON, in any order."""
    instances = [AnnotatedInstance("7", rle(0, 2)), AnnotatedInstance("3", rle(4, 2))]
    tags = {"words": {"3": [0, 1], "7": [3]}}
    expression = Expression("e", "red star and box", (0, 1), tags=tags)
    truth = Truth(Record("i", "i.png", (10, 10), instances, [expression]))
    star_last = true_instances(expression, truth)
    assert [one.words for one in star_last] == [{3}, {0, 1}] and star_last[0].mask == rle(0, 2)
    assert true_instances(Expression("f", "star", (0,)), truth) is None


def test_align_predictions(tmp_path: Path) -> None:
    """Found, and right; no instances: a miss; without the tag, or of another set: passed over; a weight too few: an
    error that names the expression."""

    def line(name: str, **more: object) -> dict:
        target = {"size": [10, 10], "counts": rle(0, 5)["counts"].decode()}
        row = {"expression_id": name, "image": "i.png", "size": [10, 10], "text": "the star", "targets": [target]}
        return {**row, "instance_ids": [4], "tags": {"words": {"4": [1]}}, **more}

    lines = [line("found"), line("missed"), line("untagged", tags={})]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    truths = open_data(str(tmp_path / "data.jsonl")).truths
    instances = [Instance(rle(0, 5), 0.9, [0.2, 0.8])]
    rows = [Answer("missed", rle(0, 5)), Answer("found", rle(0, 5), raw_instances=instances)]
    rows += [
        Answer("untagged", rle(0, 5), raw_instances=instances),
        Answer("other", rle(0, 5), raw_instances=instances),
    ]
    scores = alignment_scores(align_predictions(rows, truths))
    assert (scores["expressions"], scores["matched"], scores["coverage"], scores["pointing"]) == (2, 1, 50.0, 100.0)
    found_once = alignment_scores(align_predictions([*rows[1:], rows[1]], truths))
    assert found_once == scores, "a second row does not count, a missing one is a miss"
    other_size = coco_mask.encode(np.zeros((5, 5), np.uint8, order="F"))
    wrong = Answer("found", rle(0, 5), raw_instances=[Instance(other_size, 0.9, [0.2, 0.8])])
    with pytest.raises(DataError, match=r"prediction of found: instances\[0\] is 5 x 5, but the image is 10 x 10"):
        list(align_predictions([wrong], truths))
    short = Answer("found", rle(0, 5), raw_instances=[Instance(rle(0, 5), 0.9, [0.2])])
    with pytest.raises(DataError, match="prediction of found: an instance has 1 weights, but the text has 2 words"):
        list(align_predictions([short], truths))
