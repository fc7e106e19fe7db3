"""Choice of thresholds, by hand and against every other threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.analysis.thresholds import (
    Goal,
    Settings,
    UnionTable,
    choose_thresholds,
    no_target_candidates,
    shortest_between,
)
from refseg.errors import DataError, UsageError
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Row, Rows

REFSEG = get_protocol("refseg")
PROBS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.30000000000000004, 0.5, 0.75, 1.0, math.nan])


def rows_of(*answers: tuple[float, bool]) -> Rows:
    """(probability, has a target). Masks have 10 pixels, all of them in a target of 20."""
    return Rows.of(
        Row(
            expression_id=str(i), image_id=str(i), object_id="o", intersection=10 * target, predicted=10,
            target=20 * target, has_target=target, no_target_prob=prob, num_targets=int(target), num_words=2,
            target_area=20 * target, image_area=100,
        )
        for i, (prob, target) in enumerate(answers)
    )  # fmt: skip


FIVE = rows_of((0.9, False), (0.4, False), (0.6, True), (0.3, True), (0.1, True))


def test_best_giou() -> None:
    """A rejected phrase without a target has IoU 1, an accepted one with a target 1/2. Above 0.6 only 0.9 is rejected:
    (1 + 3/2) / 5. Above 0.3: (2 + 2/2) / 5, which is best. The middle of 0.3 and 0.4 has two decimals."""
    choice = choose_thresholds(FIVE, None, REFSEG, Goal(), Settings())
    assert choice.chosen == Settings(no_target_threshold=0.35)
    assert choice.after[1]["gIoU"] == pytest.approx(60) and choice.after[1]["N-acc"] == 100
    assert choice.before[0] is REFSEG and choice.before[1]["gIoU"] == pytest.approx(40)
    assert choice.after[0].name == "refseg+head-or-empty>0.35"
    thresholds = [line["threshold"] for line in choice.curves["no_target_threshold"]]
    assert thresholds == [0.0, 0.2, 0.35, 0.5, 0.8, 1.0]


def test_best_n_acc_with_enough_t_acc() -> None:
    """Above 0.8, all targets are accepted and one of two others is rejected. With T-acc >= 60, 0.35 is allowed."""
    choice = choose_thresholds(FIVE, None, REFSEG, Goal("N-acc", 97), Settings())
    assert choice.chosen.no_target_threshold == 0.8 and choice.after[1]["N-acc"] == 50
    choice = choose_thresholds(FIVE, None, REFSEG, Goal("N-acc", 60), Settings())
    assert choice.chosen.no_target_threshold == 0.35 and choice.after[1]["N-acc"] == 100


def test_ties() -> None:
    """The mask of 0.9 is wrong, so gIoU is 1/4 if it is rejected, if all are, and if none is: T-acc decides."""
    rows = rows_of((0.9, True), (0.2, True), (0.15, True), (0.1, False))
    rows = Rows({**rows.columns, "intersection": np.array([0, 10, 10, 0])})
    choice = choose_thresholds(rows, None, get_protocol("gres"), Goal(), Settings())
    assert choice.chosen.no_target_threshold == 1.0
    # The best N-acc is 100 from 0 to 0.1: the highest of these thresholds
    choice = choose_thresholds(FIVE, None, REFSEG, Goal("N-acc", 0), Settings())
    assert choice.chosen.no_target_threshold == 0.35


def test_goal_out_of_reach() -> None:
    """An empty mask is rejected by every threshold, so at most one of two targets is accepted."""
    rows = rows_of((0.1, True), (0.2, True), (0.9, False))
    rows = Rows({**rows.columns, "predicted": np.array([0, 10, 10]), "intersection": np.array([0, 10, 0])})
    with pytest.raises(UsageError, match=r"T-acc of 97. The highest is 50\.00.*lower --min-t-acc"):
        choose_thresholds(rows, None, REFSEG, Goal("N-acc", 97), Settings())


def test_data_of_one_kind() -> None:
    with_target = rows_of((0.7, True), (0.2, True))
    choice = choose_thresholds(with_target, None, REFSEG, Goal("N-acc", 97), Settings())
    assert choice.chosen.no_target_threshold == 1.0 and choice.goal == Goal("gIoU", 97)
    assert "N-acc is undefined" in choice.notes[0] and "N-acc" not in choice.after[1]
    with pytest.raises(DataError, match="every expression refers to nothing"):
        choose_thresholds(rows_of((0.7, False)), None, REFSEG, Goal(), Settings())
    with pytest.raises(DataError, match="no threshold to choose"):
        choose_thresholds(rows_of((math.nan, True)), None, REFSEG, Goal(), Settings())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(PROBS, st.booleans()), min_size=1, max_size=8),
    st.sampled_from(["refseg", "gres", "gsva"]),
    st.sampled_from([0.25, 0.5]),
)
def test_no_threshold_is_better(answers: list[tuple[float, bool]], name: str, own: float) -> None:
    """Candidates cover every set of phrases that a threshold can reject, and the best one is chosen."""
    rows, protocol = rows_of(*answers), get_protocol(name)
    if np.isnan(rows.no_target_prob).all() or not rows.has_target.any():
        return
    choice = choose_thresholds(rows, None, protocol, Goal(), Settings(own))
    assert choice.own.no_target_threshold == own
    for threshold in (0, 0.05, 0.1, 0.25, 0.3, 0.30000000000000004, 0.4, 0.5, 0.75, 0.9, 1):
        other = protocol.with_no_target(threshold=threshold).score(rows)["gIoU"]
        assert choice.after[1]["gIoU"] >= other - 1e-6
    for line in choice.curves["no_target_threshold"]:
        scores = protocol.with_no_target(threshold=line["threshold"]).score(rows)
        assert {metric: scores[metric] for metric in line if metric != "threshold"} == pytest.approx(
            {metric: value for metric, value in line.items() if metric != "threshold"}, abs=1e-6
        )


def test_unions() -> None:
    """Row 0 has instances of score 0.9 and 0.4, row 1 has one of 0.6. Each adds 10 pixels; a hit has 5 of them right.
    Above 0.6, row 1 is empty, which is right: it has no target."""
    rows = rows_of((math.nan, True), (math.nan, False))
    table = UnionTable(
        scores=np.array([0.9, 0.4, 0.6]),
        row=np.array([0, 0, 1]),
        first=np.array([0, 3]),
        pixels=np.array([(0, 0), (10, 10), (10, 20), (0, 0), (0, 10)]),
    )
    assert table.candidates(0.3).tolist() == [0.3, 0.5, 0.8] and table.candidates(None).tolist() == [0.4, 0.5, 0.8]
    assert table.rows_at(rows, 0.4).predicted.tolist() == [20, 10]
    assert table.rows_at(rows, 0.61).predicted.tolist() == [10, 0]
    choice = choose_thresholds(table.rows_at(rows, 0), table, REFSEG, Goal(), Settings(None, 0.3))
    assert choice.chosen == Settings(None, 0.8) and choice.own == Settings(None, 0.3)
    assert choice.after[1]["gIoU"] == pytest.approx(75) and choice.after[1]["N-acc"] == 100
    # Protocols without a rule for empty masks get one: otherwise no phrase could be rejected
    choice = choose_thresholds(table.rows_at(rows, 0), table, get_protocol("gres"), Goal(), Settings(None, 0.3))
    assert choice.before[0].name == "gres" and choice.after[0].no_target.rule == "head-or-empty"
    # The lowest threshold is best where dropping instances only loses pixels
    table = UnionTable(np.array([0.9, 0.4]), np.array([0, 0]), np.array([0]), np.array([(0, 0), (5, 5), (20, 20)]))
    rows = rows_of((math.nan, True))
    choice = choose_thresholds(table.rows_at(rows, 0), table, REFSEG, Goal(), Settings(None, 0.3))
    assert choice.chosen.instance_threshold == 0.3
    assert any("no instances with a score below 0.3" in note for note in choice.notes)


def test_without_instances() -> None:
    empty = UnionTable(np.zeros(0), np.zeros(0, int), np.array([0]), np.zeros((1, 2), int))
    assert empty.candidates(None).tolist() == [0.0] and empty.candidates(0.3).tolist() == [0.3]
    assert empty.rows_at(rows_of((0.1, True)), 0.0).predicted.tolist() == [0]


def test_numbers_are_short() -> None:
    low, high = np.array([0.123, 0.5, 0.3]), np.array([0.137, 0.9, 0.30000000000000004])
    assert shortest_between(low, high, low).tolist() == [0.13, 0.7, 0.3]
    many = no_target_candidates(np.random.default_rng(0).random(5000), 0.5)
    assert len(many) <= 1003 and many[0] == 0 and many[-1] == 1 and 0.5 in many


def test_settings_of_a_header() -> None:
    made_with = {"no_target_threshold": 0.7, "instance_threshold": "high"}
    assert Settings.of_header({"postprocess": made_with}) == Settings(0.7, None)
    assert Settings.of_header({"postprocess": 3}) == Settings.of_header({}) == Settings()
