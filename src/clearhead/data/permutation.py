"""A shuffled order of any size whose elements are computed one by one; nothing is stored.

A Feistel network (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions")
turns any function of half a number's bits into a permutation of the numbers of that many bits. If the size is not a
power of two, a number outside the range goes through the network again until it is inside ("cycle-walking": Black and
Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3). The function here is the mixing step of SplitMix64.
"""

from __future__ import annotations

import numpy as np

from clearhead.utils.splitmix64 import MASK, mix

_ROUNDS = 6


class Permutation:
    """The numbers from 0 to size - 1 in a shuffled order.

    Args:
        size: how many there are, at least 1.
        key: integers that determine the order.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._half = max(((size - 1).bit_length() + 1) // 2, 1)  # bits in each half of a number
        self._mask = (1 << self._half) - 1
        seed = np.random.SeedSequence([*key, size])
        self._keys: list[int] = seed.generate_state(_ROUNDS, np.uint64).tolist()

    def __call__(self, index: int) -> int:
        """Return the number at an index, from 0 to size - 1, of the order."""
        # At least a quarter of the numbers are inside, so most need only a few rounds.
        while (index := self._feistel(index)) >= self.size:
            pass
        return index

    def _feistel(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right + key & MASK) & self._mask)
        return left << self._half | right
