from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from refseg.datasets.samplers import EpochSampler


def sampler(size: int, rank: int = 0, world_size: int = 1, **kwargs: object) -> EpochSampler:
    with mock.patch("refseg.datasets.samplers.get_dist_info", return_value=(rank, world_size)):
        return EpochSampler(range(size), **kwargs)


@given(st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_ranks_interleave(size: int, world_size: int, shuffle: bool) -> None:
    """One item of each rank in turn gives the order of a single process, and padding at the end."""
    ranks = [[key.item for key in sampler(size, rank, world_size, shuffle=shuffle)] for rank in range(world_size)]
    assert len({len(part) for part in ranks}) == 1
    merged = [index for step in zip(*ranks, strict=True) for index in step]
    assert merged[:size] == [key.item for key in sampler(size, shuffle=shuffle)]
    assert sorted(merged[:size]) == list(range(size))


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 3))
def test_skip_continues_the_same_order(size: int, skip: int, epoch: int) -> None:
    whole, resumed = sampler(size), sampler(size)
    whole.set_position(seed=5, epoch=epoch, skip=0)
    resumed.set_position(seed=5, epoch=epoch, skip=skip)
    assert list(whole)[skip:] == list(resumed)
    assert len(whole) == len(resumed) == size


def test_epochs_and_seeds_change_the_order() -> None:
    s = sampler(50, seed=1)
    first = list(s)
    s.set_epoch(1)
    second = list(s)
    assert [key.item for key in first] != [key.item for key in second]
    assert {(key.epoch, key.seed) for key in second} == {(1, 1)}
    assert [key.item for key in sampler(50, seed=2)] != [key.item for key in first]
