"""The sampler of training and evaluation. Its order depends on (seed, epoch) only, never on history."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from refseg.registry import DATA_SAMPLERS


class SampleKey(NamedTuple):
    """Key of one sample. All of its randomness derives from these numbers."""

    item: int
    epoch: int = 0
    seed: int = 0


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Sampler of `SampleKey`s for one or more processes.

    Each rank takes every world_size-th item of one (shuffled) order, which wraps around to equal lengths. Interleaving
    keeps the order for mmengine's `collect_results`, which also cuts off the padding.

    Args:
        dataset: The data set.
        shuffle: Draw a new order in each epoch.
        seed: Seed of the orders and of the samples' randomness.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed or 0
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def set_position(self, *, seed: int, epoch: int, skip: int) -> None:
        """Start the next pass in `epoch` after `skip` items of this rank, so that a resumed run repeats none."""
        self.seed, self.epoch, self.skip = seed, epoch, skip

    def __len__(self) -> int:
        """Return the number of items of this rank in a whole epoch."""
        return -(-len(self.dataset) // self.world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        size = len(self.dataset)
        order = np.arange(size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(size)
        order = np.resize(order, len(self) * self.world_size)  # wraps around
        for index in order[self.rank :: self.world_size][self.skip :]:
            yield SampleKey(int(index), self.epoch, self.seed)
