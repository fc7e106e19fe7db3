"""Bootstrap intervals and paired tests, on examples with known results."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refseg.evaluation import statistics
from refseg.evaluation.statistics import bootstrap, paired_ranking_test, paired_test, sum_by_image
from refseg.evaluation.terms import Terms, values


def simulated(rng: np.random.Generator, images: int, shift: float = 0.0) -> tuple[Terms, np.ndarray]:
    """Return three correlated rows for each image, with an expected value of 50 % + shift."""
    image = np.repeat(np.arange(images), 3)
    denominator = rng.integers(50, 150, len(image))
    share = 0.5 + shift + 0.2 * rng.standard_normal(images)[image] + 0.1 * rng.standard_normal(len(image))
    return {"IoU": (share * denominator, denominator)}, image


def test_paired_ranking_by_hand() -> None:
    """Four images of a phrase each. A ranks one of the four pairs wrong; B none. Equal files do not differ."""
    none = np.array([True, True, False, False])
    a, b = np.array([0.9, 0.3, 0.4, 0.1]), np.array([0.9, 0.8, 0.2, 0.1])
    found = paired_ranking_test(a, b, none, np.arange(4), num=200)
    assert (found["AUC"].a, found["AUC"].b, found["AUC"].difference) == pytest.approx((75, 100, 25))
    # A is surest of the first and the last (right), then of the second (wrong), then of the third (right).
    assert found["AURC"].a == pytest.approx(100 * (0 + 0 + 1 / 3 + 1 / 4) / 4) and found["AURC"].b == 0
    assert 0.1 < found["AUC"].p_value < 1 and found["AUC"].low <= 25 <= found["AUC"].high
    same = paired_ranking_test(a, a, none, np.arange(4), num=50)
    assert all(result.difference == 0 and result.p_value == 1 for result in same.values())


def test_sum_by_image() -> None:
    """Image 3 has the second row, and image 7 has the others. A metric has its numerator, then its denominator."""
    terms = {"a": (np.array([1, 2, 3]), np.array([4, 5, 6])), "b": (np.array([True, False, True]), np.ones(3, bool))}
    assert sum_by_image(terms, np.array([7, 3, 7])).tolist() == [[2, 5, 0, 1], [4, 10, 2, 2]]


def test_interval_of_two_images() -> None:
    """Images have 0/1 and 1/1, so resamples are 0, 50 and 100 % with chances 1/4, 1/2 and 1/4. The 2.5 and 97.5 %
    points are the ends. The 30 and 70 % points, of a 40 % interval, are both 50 %."""
    terms = {"x": (np.array([0, 1]), np.array([1, 1]))}
    assert bootstrap(terms, np.arange(2)) == {"x": (0.0, 100.0)}
    assert bootstrap(terms, np.arange(2), level=40.0) == {"x": (50.0, 50.0)}


def test_metrics_without_denominator() -> None:
    """One of two images has a denominator. A quarter of the resamples lack it, and all others are 100 %."""
    terms = {"x": (np.array([0, 1]), np.array([0, 1])), "never": (np.zeros(2), np.zeros(2))}
    assert bootstrap(terms, np.arange(2)) == {"x": (100.0, 100.0)}
    assert set(paired_test(terms, terms, np.arange(2), num=50)) == {"x"}
    assert bootstrap({}, np.arange(2)) == {} and paired_test({}, {}, np.arange(2)) == {}
    nothing = {"x": (np.zeros(0), np.zeros(0))}
    assert bootstrap(nothing, np.zeros(0, int)) == {} and paired_test(nothing, nothing, np.zeros(0, int)) == {}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_value_lies_within_resamples(data: st.DataObject, rows: int) -> None:
    """The 100 % interval goes from the lowest to the highest of 500 resamples."""
    denominator = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(1, 1000)))
    share = data.draw(hnp.arrays(np.float64, rows, elements=st.floats(0, 1)))
    image = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 3)))
    terms = {"x": (share * denominator, denominator)}
    low, high = bootstrap(terms, image, num=500, level=100.0)["x"]
    assert low - 1e-9 <= values(terms)["x"] <= high + 1e-9
    assert bootstrap(terms, image, num=50) == bootstrap(terms, image, num=50)


def test_intervals_cover_the_truth() -> None:
    """They do in 95 % of the cases if images are drawn. 200 simulations give 88 to 99 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap(*simulated(rng, 60), num=300, seed=seed)["IoU"]
        covered += low <= 50.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_drawing_rows_gives_narrower_intervals() -> None:
    """Rows of one image are correlated, so treating them as independent gives a narrower interval."""
    terms, image = simulated(np.random.default_rng(1), 200)
    by_image, by_row = bootstrap(terms, image)["IoU"], bootstrap(terms, np.arange(len(image)))["IoU"]
    assert by_image[1] - by_image[0] > 1.3 * (by_row[1] - by_row[0])


def test_identical_predictions() -> None:
    terms, image = simulated(np.random.default_rng(2), 20)
    result = paired_test(terms, terms, image, num=200)["IoU"]
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert result.a == result.b == values(terms)["IoU"]


def test_constant_improvement() -> None:
    """B is one point better everywhere, so the difference and its interval are 1, though A's own interval is wide. No
    swap reaches the difference, so p has its smallest value."""
    (numerator, denominator), image = simulated(np.random.default_rng(3), 200)[0]["IoU"], np.repeat(np.arange(200), 3)
    a, b = {"IoU": (numerator, denominator)}, {"IoU": (numerator + 0.01 * denominator, denominator)}
    result = paired_test(a, b, image, num=999)["IoU"]
    assert result[2:5] == pytest.approx((1.0, 1.0, 1.0)) and result.p_value == 0.001
    low, high = bootstrap(a, image)["IoU"]
    assert high - low > 3


def test_exact_p_value_of_three_images() -> None:
    """The differences are 3, 2 and 1 of 10. Only +++ and --- of the 8 swaps reach 6, so p is 1/4."""
    a = {"x": (np.array([0, 0, 0]), np.full(3, 10))}
    b = {"x": (np.array([3, 2, 1]), np.full(3, 10))}
    result = paired_test(a, b, np.arange(3))["x"]
    assert result.difference == pytest.approx(20.0) and result.p_value == pytest.approx(0.25, abs=0.02)
    mirrored = paired_test(b, a, np.arange(3))["x"]
    assert mirrored.difference == pytest.approx(-20.0) and mirrored.p_value == result.p_value


def test_unions_differ_between_models() -> None:
    """cIoU has different denominators for A, (10 + 0) / (20 + 20), and B, (10 + 10) / (20 + 60). Both are 25 %, and
    swapping the second image only swaps them."""
    a = {"cIoU": (np.array([10, 0]), np.array([20, 20]))}
    b = {"cIoU": (np.array([10, 10]), np.array([20, 60]))}
    result = paired_test(a, b, np.arange(2), num=100)["cIoU"]
    assert (result.a, result.b, result.difference, result.p_value) == (25.0, 25.0, 0.0, 1.0)


def test_p_values_without_a_difference() -> None:
    """For equally good models, p is below 0.1 in about a tenth of 200 simulations, and below 0.5 in about half."""
    rng = np.random.default_rng(4)
    result = []
    for seed in range(200):
        (a, image), (b, _) = simulated(rng, 30), simulated(rng, 30)
        result.append(paired_test(a, b, image, num=199, seed=seed)["IoU"].p_value)
    assert 0.04 <= np.mean(np.array(result) <= 0.1) <= 0.17 and 0.38 <= np.mean(np.array(result) <= 0.5) <= 0.62


def test_only_common_metrics() -> None:
    a, image = simulated(np.random.default_rng(5), 5)
    assert list(paired_test({**a, "mine": a["IoU"]}, {"yours": a["IoU"], **a}, image, num=10)) == ["IoU"]


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, image = simulated(np.random.default_rng(6), 40)
    worse = {"IoU": (0.9 * terms["IoU"][0], terms["IoU"][1])}
    before = bootstrap(terms, image, num=100), paired_test(terms, worse, image, num=100)
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 7 * 40)
    after = bootstrap(terms, image, num=100), paired_test(terms, worse, image, num=100)
    assert before[0]["IoU"] == pytest.approx(after[0]["IoU"])
    assert before[1]["IoU"] == pytest.approx(after[1]["IoU"])


def test_resampling_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are summed by image once. Resampling uses the 50 sums, not the 20,000 rows."""
    rng = np.random.default_rng(7)
    image = rng.integers(0, 50, 20_000)
    terms = {str(i): (rng.integers(0, 100, 20_000), rng.integers(100, 200, 20_000)) for i in range(9)}
    summed = mock.Mock(wraps=statistics.sum_by_image)
    drawn = mock.Mock(wraps=statistics._resamples)
    monkeypatch.setattr(statistics, "sum_by_image", summed)
    monkeypatch.setattr(statistics, "_resamples", drawn)
    bootstrap(terms, image, num=100)
    assert summed.call_count == 1
    drawn.assert_called_once_with(50, 100, 0)
