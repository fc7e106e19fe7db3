"""Metrics by group, and the confusion of target and no target."""

from __future__ import annotations

import numpy as np
import pytest

from refseg.errors import UsageError
from refseg.evaluation.breakdowns import BREAKDOWNS, breakdown, confusion
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.evaluation.statistics import bootstrap

GRES = get_protocol("gres")


def row(**changes: object) -> Row:
    """Return a row with IoU 1/2."""
    fields = dict(
        expression_id="e", image_id="i", object_id="o", intersection=10, predicted=10, target=20, has_target=True,
        no_target_prob=0.1, num_targets=1, num_words=2, target_area=20, image_area=100,
    )  # fmt: skip
    return Row(**{**fields, **changes})


def nothing(**changes: object) -> Row:
    return row(**{**dict(has_target=False, num_targets=0, target=0, intersection=0, target_area=0), **changes})


def test_lengths() -> None:
    """Limits belong to the group above: 2 | 3, 7 | 8, 12 | 13, 99."""
    rows = Rows.of(row(num_words=n) for n in (1, 2, 3, 7, 8, 12, 13, 99))
    lines = breakdown(rows, GRES, "length")
    assert [line["length"] for line in lines] == ["[1, 3) words", "[3, 8) words", "[8, 13) words", "[13, inf) words"]
    assert [line["expressions"] for line in lines] == [2, 2, 2, 2]


def test_targets() -> None:
    rows = Rows.of([nothing(), *(row(num_targets=n) for n in (1, 2, 3, 4, 9))])
    lines = breakdown(rows, GRES, "targets")
    assert [(line["targets"], line["expressions"]) for line in lines] == [
        ("0", 1), ("1", 1), ("2", 1), ("3", 1), ("4 or more", 2),
    ]  # fmt: skip
    assert "T-acc" not in lines[0] and "N-acc" not in lines[1]


def test_interval_of_the_first_metric() -> None:
    """It is over the images of the group's rows. There is none without resamples."""
    rows = Rows.of(row(image_id=str(i), intersection=i, num_targets=1 + i % 2) for i in range(1, 11))
    lines = breakdown(rows, GRES, "targets", resamples=200)
    for line, chosen in zip(lines, (rows.num_targets == 1, rows.num_targets == 2), strict=True):
        ends = bootstrap(GRES.terms(rows[chosen]), rows[chosen].image, num=200)["gIoU"]
        assert line["interval"] == {"of": "gIoU", "ends": pytest.approx(list(ends))}
        assert ends[0] < line["gIoU"] < ends[1]
    assert "interval" not in breakdown(rows, GRES, "targets")[0]


def test_sizes() -> None:
    """In an image of 1,000 pixels, 9 is below 1 %, 10 and 49 below 5 %, 50 and 199 below 20 %, and the others above."""
    areas = (9, 10, 49, 50, 199, 200, 1000)
    rows = Rows.of([nothing(), *(row(target_area=area, image_area=1000) for area in areas)])
    lines = breakdown(rows, GRES, "size")
    assert [(line["size"], line["expressions"]) for line in lines] == [
        ("no target", 1), ("< 1 % of the image", 1), ("1-5 %", 2), ("5-20 %", 2), (">= 20 %", 2),
    ]  # fmt: skip


def test_categories() -> None:
    """Toilets and apples are seen classes, cups unseen ones, "shoe" is neither; seen beside unseen is other. Without
    a category, or without a target, a row is in no group."""
    names = ["toilet", "apple|toilet", "cup", "cup|toilet", "shoe", ""]
    rows = Rows.of([*(row(categories=name) for name in names), nothing()])
    lines = breakdown(rows, GRES, "category")
    assert [(line["category"], line["expressions"]) for line in lines] == [("seen", 2), ("unseen", 1), ("other", 2)]
    assert breakdown(Rows.of([row()]), GRES, "category") == []


def test_skills() -> None:
    """IoU 1/2 and 1 give 75. A rejected row counts as 0."""
    rows = Rows.of(
        [
            row(skill="size"),
            row(skill="pose", no_target_prob=0.9),
            row(skill="size", intersection=20, predicted=20),
            row(),
        ]
    )
    pose, size = breakdown(rows, GRES, "skill")
    assert (pose["skill"], pose["expressions"], pose["gIoU"], pose["T-acc"]) == ("pose", 1, 0.0, 0.0)
    assert (size["skill"], size["expressions"], size["gIoU"], size["T-acc"]) == ("size", 2, 75.0, 100.0)


@pytest.mark.parametrize("by", BREAKDOWNS)
def test_no_rows(by: str) -> None:
    assert breakdown(Rows.of([]), GRES, by) == []


@pytest.mark.parametrize("by", ["length", "targets", "size"])
def test_single_group_equals_whole_set(by: str) -> None:
    rows = Rows.of([row(), row(intersection=20)])
    (line,) = breakdown(rows, GRES, by)
    assert {name: line[name] for name in GRES.score(rows)} == GRES.score(rows)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="did you mean length"):
        breakdown(Rows.of([]), GRES, "lenght")
    with pytest.raises(UsageError, match="valid names: length, targets, size, category, skill, tag:NAME"):
        breakdown(Rows.of([]), GRES, "colour")


def test_confusion() -> None:
    """Four rows have a target and one of them is rejected; two have none and one is rejected."""
    rows = Rows.of([row(), row(), row(num_targets=2), row(num_targets=2), nothing(), nothing()])
    result = confusion(rows, np.array([False, False, True, False, True, False]))
    assert result["counts"] == {
        "target, accepted": 3, "target, rejected": 1, "no target, accepted": 1, "no target, rejected": 1,
    }  # fmt: skip
    assert result["rates"] == {"T-acc": 75.0, "N-acc": 50.0, "N-precision": 50.0}
    assert result["by_targets"] == [
        {"targets": "0", "expressions": 2, "rejected": 50.0},
        {"targets": "1", "expressions": 2, "rejected": 0.0},
        {"targets": "2", "expressions": 2, "rejected": 50.0},
    ]
    empty = confusion(rows[:0], np.zeros(0, bool))
    assert set(empty["rates"].values()) == {None} and empty["by_targets"] == []
