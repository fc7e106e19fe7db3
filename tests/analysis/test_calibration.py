"""Threshold curves against scoring anew, and calibration by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.analysis.calibration import calibration, expected_error, reliability, threshold_curve
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.evaluation.statistics import auroc, risk_coverage


def rows_of(*answers: tuple) -> Rows:
    """(probability, has a target, not empty: True); masks of 10 pixels, all of them in a target of 20."""
    return Rows.of(
        Row(
            expression_id=str(i), image_id=str(i), object_id="o", intersection=10 * target * all(correct),
            predicted=10 * all(correct),
            target=20 * target, has_target=target, no_target_prob=prob, num_targets=int(target), num_words=2,
            target_area=20 * target, image_area=100,
        )
        for i, (prob, target, *correct) in enumerate(answers)
    )  # fmt: skip


FOUR = rows_of((0.9, False), (0.2, False), (0.6, True), (0.1, True))


def test_threshold_curve() -> None:
    """Rejected above 0.5: 0.9 (right) and 0.6 (wrong): gIoU (1 + 0 + 0 + 1/2) / 4. Above 0.15: all but the last.
    Nothing exceeds 0.9."""
    curve = threshold_curve(FOUR, get_protocol("gres"), np.array([0.15, 0.5, 0.9]))
    assert curve == [
        {"threshold": 0.15, "N-acc": 100.0, "T-acc": 50.0, "gIoU": 62.5, "balanced": 75.0},
        {"threshold": 0.5, "N-acc": 50.0, "T-acc": 50.0, "gIoU": 37.5, "balanced": 50.0},
        {"threshold": 0.9, "N-acc": 0.0, "T-acc": 100.0, "gIoU": 25.0, "balanced": 50.0},
    ]
    assert [line["threshold"] for line in threshold_curve(FOUR, get_protocol("gres"), None)] == [0.1, 0.2, 0.6, 0.9]
    assert len(threshold_curve(FOUR, get_protocol("gres"))) == 101


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.505, 1.0, math.nan]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from(["refseg", "gres", "deris", "gsva"]),
)
def test_curve_matches_rescoring(answers: list[tuple[float, bool, bool]], name: str) -> None:
    rows, protocol = rows_of(*answers), get_protocol(name)
    curve = threshold_curve(rows, protocol, np.array([0.0, 0.2, 0.25, 0.5, 0.51, 1.0]))
    assert (curve is None) == all(math.isnan(prob) for prob, _, _ in answers)
    for line in curve or []:
        scores = protocol.with_no_target(threshold=line["threshold"]).score(rows)
        for metric in ("N-acc", "T-acc", "gIoU"):
            assert (metric in line) == (metric in scores)
            assert line.get(metric, 0) == pytest.approx(scores.get(metric, 0))


def test_protocols_without_giou() -> None:
    (line,) = threshold_curve(FOUR, get_protocol("rrefcoco"), np.array([0.5]))
    assert set(line) == {"threshold", "N-acc", "T-acc", "balanced"}


def test_without_probability() -> None:
    without = rows_of((math.nan, True), (math.nan, False))
    assert calibration(without) is None and threshold_curve(without, get_protocol("gres")) is None
    assert calibration(FOUR[:0]) is None and threshold_curve(FOUR[:0], get_protocol("gres")) is None


def test_auroc() -> None:
    """0.9 is above both targets and 0.2 is above 0.1, which is 3 of 4 pairs. Ties count half."""
    assert auroc(FOUR.no_target_prob, ~FOUR.has_target) == 0.75
    assert auroc(np.array([0.5, 0.5, 0.5]), np.array([True, False, False])) == 0.5
    assert auroc(np.array([0.5]), np.array([True])) is None


def test_calibration() -> None:
    """Brier: (0.01 + 0.64 + 0.36 + 0.01) / 4. Two bins: {0.2, 0.1} mean 0.15, share 1/2; {0.9, 0.6} mean 0.75, share
    1/2: (0.35 + 0.25) / 2. A row without probability is counted, and left out."""
    result = calibration(rows_of((0.9, False), (0.2, False), (0.6, True), (0.1, True), (math.nan, True)), num_bins=2)
    assert result["expressions"] == 4 and result["without_probability"] == 1 and result["no_target"] == 2
    assert result["Brier"] == pytest.approx(0.255)
    assert result["ECE"] == pytest.approx(0.3) and result["ECE_equal_mass"] == pytest.approx(0.3)
    assert [line["expressions"] for line in result["reliability"]] == [2, 2]
    assert result["reliability"][0]["probability"] == pytest.approx(0.15)


def test_risk_coverage() -> None:
    """The decisions on 0.9 and 0.1 are right and the surest, those on 0.2 (0.8 sure) and 0.6 are wrong: the risks are
    0, 0, 1/3, and 2/4, and their mean is 5/24."""
    found = calibration(FOUR)
    assert found["AURC"] == pytest.approx(5 / 24)
    curve = [(line["coverage"], pytest.approx(line["risk"])) for line in found["risk_coverage"]]
    assert curve == [(0.25, 0), (0.5, 0), (0.75, 1 / 3), (1, 1 / 2)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.9]), st.floats(0, 1)), min_size=1, max_size=6))
def test_risk_coverage_by_definition(answers: list[tuple[float, float]]) -> None:
    """Accept answers one by one, the surest first, in every order that ties allow. Each time, the risk is the mean
    loss so far. The area is the mean of all these risks."""
    areas = []
    for order in itertools.permutations(answers):
        if all(first[0] >= second[0] for first, second in itertools.pairwise(order)):
            risks = [np.mean([loss for _, loss in order[:k]]) for k in range(1, len(order) + 1)]
            areas.append(np.mean(risks))
    confidence, loss = np.array(answers).T
    assert risk_coverage(confidence, loss).mean() == pytest.approx(np.mean(areas))


def test_bin_edges() -> None:
    """With ten bins, 0.1 is in the second and 1.0 in the last. Empty bins are left out."""
    lines = reliability(np.array([0.0, 0.1, 1.0]), np.array([False, False, True]), num_bins=10)
    assert [line["low"] for line in lines] == pytest.approx([0, 0.1, 0.9])
    assert [line["high"] for line in lines] == pytest.approx([0.1, 0.2, 1.0])


def test_equal_mass_keeps_equal_probabilities_together() -> None:
    """Equal width and equal mass give the same two groups, in any order."""
    prob, positive = np.array([0.01, 0.99, 0.01, 0.01]), np.array([False, True, True, False])
    lines = reliability(prob, positive, num_bins=4, bins="mass")
    assert [line["expressions"] for line in lines] == [3, 1]
    order = np.array([2, 0, 3, 1])
    for bins in ("width", "mass"):
        error = expected_error(prob, positive, num_bins=4, bins=bins)
        assert error == pytest.approx((3 * abs(0.01 - 1 / 3) + 0.01) / 4)
        assert error == pytest.approx(expected_error(prob[order], positive[order], num_bins=4, bins=bins))


def test_calibrated_probability() -> None:
    """Events drawn with the given probability have a small error, and their complement has a large one."""
    rng = np.random.default_rng(0)
    prob = rng.random(20_000)
    positive = rng.random(20_000) < prob
    for bins in ("width", "mass"):
        assert expected_error(prob, positive, num_bins=10, bins=bins) < 0.02
        assert expected_error(1 - prob, positive, num_bins=10, bins=bins) > 0.4
