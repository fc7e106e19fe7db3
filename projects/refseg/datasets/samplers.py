"""The sampler of training and evaluation: position and randomness are functions of (seed, epoch), never of history."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from refseg.registry import DATA_SAMPLERS


class SampleKey(NamedTuple):
    """What a dataset needs to make one sample: everything random about it derives from these."""

    item: int
    epoch: int = 0
    seed: int = 0


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Each rank takes every world_size-th item of one (shuffled) order, padded by wrapping to equal lengths.

    `set_position` starts an epoch anywhere, so that a resumed run reads nothing twice. Interleaving keeps the order
    for mmengine's `collect_results`, which also cuts off the padding.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed or 0
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_position(self, *, seed: int, epoch: int, skip: int) -> None:
        """The next pass is epoch `epoch` without its first `skip` items of this rank."""
        self.seed, self.epoch, self.skip = seed, epoch, skip

    def __len__(self) -> int:
        """Items of this rank in a whole epoch."""
        return -(-len(self.dataset) // self.world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        size = len(self.dataset)
        order = np.arange(size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(size)
        order = np.resize(order, len(self) * self.world_size)  # wraps around
        for index in order[self.rank :: self.world_size][self.skip :]:
            yield SampleKey(int(index), self.epoch, self.seed)
