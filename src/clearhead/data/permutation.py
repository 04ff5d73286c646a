"""A shuffled order of any number of things, in which each place can be asked for alone and nothing is stored.

A Feistel network (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions")
turns any function of half a number's bits into a permutation of the numbers of that many bits. For a size that is no
power of two, a number that falls outside is sent through again until it falls inside ("cycle-walking": Black and
Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3). The function here is the mixing step of splitmix64.
"""

from __future__ import annotations

import numpy as np

from clearhead.utils.splitmix64 import MASK, mix

_ROUNDS = 6


class Permutation:
    """The numbers from 0 to size - 1 in a shuffled order.

    Args:
        size: how many there are, at least 1.
        key: whole numbers that decide the order.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._half = max(((size - 1).bit_length() + 1) // 2, 1)  # bits in each half of a number
        self._mask = (1 << self._half) - 1
        seed = np.random.SeedSequence([*key, size])
        self._keys: list[int] = seed.generate_state(_ROUNDS, np.uint64).tolist()

    def __call__(self, place: int) -> int:
        """The number at a place, from 0 to size - 1, of the order."""
        # At least a quarter of the numbers are inside, so that few go round more than a few times.
        while (place := self._round_trip(place)) >= self.size:
            pass
        return place

    def _round_trip(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right + key & MASK) & self._mask)
        return left << self._half | right
