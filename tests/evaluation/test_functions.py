import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.evaluation import ExpressionRow, score_expression, summarise
from refseg.evaluation.functions import summarise_by


def box(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[y : y + h, x : x + w] = True
    return mask


NOTHING = np.zeros((10, 10), bool)


def row(name: str, predicted: np.ndarray, target: np.ndarray, rejected: bool = False, skill: str = "") -> ExpressionRow:
    has_target = bool(target.any())
    return score_expression(name, predicted, target, rejected=rejected, has_target=has_target, skill=skill)


ROWS = [
    row("1", box(0, 0, 5, 4), box(1, 0, 5, 4), skill="a"),
    row("2", box(0, 0, 4, 5), box(0, 0, 2, 10), rejected=True, skill="a"),
    row("3", box(0, 0, 5, 1), NOTHING, rejected=True, skill="b"),
    row("4", box(0, 0, 4, 2), NOTHING, skill="b"),
    row("5", box(2, 2, 5, 5), box(2, 2, 5, 5), skill="b"),
]


def test_rows_by_hand() -> None:
    """1: 4 x 4 of 24. 2: rejected, so nothing of the target's 20. 3: rejected, nothing of nothing. 4: 8 false pixels.
    5: all 25."""
    assert [(r.intersection, r.union) for r in ROWS] == [(16, 24), (0, 20), (0, 0), (0, 8), (25, 25)]


def test_summary_by_hand() -> None:
    """All: gIoU (2/3 + 0 + 1 + 0 + 1) / 5, cIoU 41 / 77. Targets: oIoU 41 / 69, mIoU (2/3 + 0 + 1) / 3; IoUs from
    0.5 and 0.6: two of three, from 0.7 on one. One of two no-target and two of three target expressions recognised."""
    scores = summarise(ROWS)
    assert scores["gIoU"] == pytest.approx(100 * (2 / 3 + 2) / 5)
    assert scores["cIoU"] == pytest.approx(100 * 41 / 77)
    assert scores["oIoU"] == pytest.approx(100 * 41 / 69)
    assert scores["mIoU"] == pytest.approx(100 * (2 / 3 + 1) / 3)
    assert [scores[f"Pr@{t}"] for t in (0.5, 0.6, 0.7, 0.9)] == pytest.approx([200 / 3, 200 / 3, 100 / 3, 100 / 3])
    assert scores["N-acc"] == pytest.approx(50) and scores["T-acc"] == pytest.approx(200 / 3)


def test_numbers_without_a_denominator_are_left_out() -> None:
    assert summarise([]) == {}
    assert "N-acc" not in summarise(ROWS[:1])
    only_empty = summarise([ROWS[2]])
    assert only_empty == {"gIoU": 100.0, "N-acc": 100.0}


def test_breakdown() -> None:
    a, b = summarise_by(ROWS, "skill")
    assert (a["skill"], a["expressions"], b["expressions"]) == ("a", 2, 3)
    assert a["gIoU"] == pytest.approx(100 / 3) and b["N-acc"] == pytest.approx(50)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"x: predicted mask \(10, 10\), ground truth \(5, 5\)"):
        row("x", NOTHING, np.zeros((5, 5), bool))


@given(st.permutations(ROWS))
def test_the_order_of_rows_does_not_matter(rows: list[ExpressionRow]) -> None:
    assert summarise(rows) == pytest.approx(summarise(ROWS))
