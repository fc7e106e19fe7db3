"""A random stream whose numbers are the same with every numpy version and on every machine."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream:
    """Draws from the raw 64-bit output of PCG64.

    numpy promises that a bit generator's raw output and ``SeedSequence`` never change, but promises nothing of the
    kind for ``Generator.integers`` and the like (NEP 19), so the few draws needed are made here from the raw bits.
    """

    def __init__(self, *entropy: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def below(self, bound: int) -> int:
        """An integer in [0, bound); the bias is below bound / 2**32."""
        return ((int(self._bits.random_raw()) >> 32) * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """One of the keys, drawn in proportion to its whole-number weight."""
        left = self.below(sum(weights.values()))
        for option, weight in weights.items():
            left -= weight
            if left < 0:
                return option
        raise AssertionError("unreachable: below() stays under the sum of the weights")

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different options (all of them where there are fewer), in random order."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(min(count, len(pool)))]

    def bytes(self, count: int) -> np.ndarray:
        """(count,) uint8, the same on little- and big-endian machines."""
        raw = self._bits.random_raw(-(-count // 8))
        return raw.astype("<u8").view(np.uint8)[:count]
