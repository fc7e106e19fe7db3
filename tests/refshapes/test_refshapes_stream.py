from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.refshapes.random_stream import Stream


def test_numbers_are_fixed():
    """numpy promises that the raw output of PCG64 and SeedSequence never changes."""
    stream = Stream(1, 2, 3)
    assert [stream.below(1000) for _ in range(6)] == [670, 111, 511, 356, 704, 479]
    assert stream.bytes(5).tolist() == [207, 173, 43, 240, 17]


@given(st.integers(0, 2**31), st.integers(1, 10**6))
def test_below_is_less_than_its_bound(seed, bound):
    stream = Stream(seed)
    assert all(0 <= stream.below(bound) < bound for _ in range(20))


def test_between_reaches_both_ends():
    stream = Stream(0)
    assert {stream.between(-1, 1) for _ in range(100)} == {-1, 0, 1}


def test_weighted_follows_the_weights():
    """Of 6000 draws at 1 : 2 : 0, 2000 and 4000 are expected, with a standard deviation of 37."""
    stream = Stream(5)
    counts = Counter(stream.weighted({"a": 1, "b": 2, "c": 0}) for _ in range(6000))
    assert counts["a"] == pytest.approx(2000, abs=150)
    assert counts["c"] == 0


def test_sample_draws_different_options():
    assert sorted(Stream(0).sample("abc", 5)) == ["a", "b", "c"]
    assert len(set(Stream(1).sample(range(10), 4))) == 4


def test_bytes_length():
    assert Stream(0).bytes(13).shape == (13,)
