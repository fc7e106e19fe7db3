"""Random numbers that are the same with every numpy version and on every machine."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream:
    """Draws from the raw 64-bit output of PCG64.

    numpy guarantees that the raw output of a bit generator and ``SeedSequence`` never change, but gives no such
    guarantee for methods like ``Generator.integers`` (NEP 19). The draws here therefore use the raw bits.
    """

    def __init__(self, *entropy: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def below(self, bound: int) -> int:
        """Draw an integer in [0, bound); the bias is below bound / 2**32."""
        return ((int(self._bits.random_raw()) >> 32) * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """Draw an integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """Draw one of the keys in proportion to its whole-number weight."""
        remaining = self.below(sum(weights.values()))
        for option, weight in weights.items():
            remaining -= weight
            if remaining < 0:
                return option
        raise AssertionError("unreachable: below() stays under the sum of the weights")

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Draw ``count`` different options, or all if there are fewer, in random order."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(min(count, len(pool)))]

    def bytes(self, count: int) -> np.ndarray:
        """Draw (count,) uint8, the same on little- and big-endian machines."""
        raw = self._bits.random_raw(-(-count // 8))
        return raw.astype("<u8").view(np.uint8)[:count]
