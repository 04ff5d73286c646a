"""SplitMix64: spread a number over all 64 bits.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17 (`mix64`, in Stafford's
variant 13). Compiled kernels take the constants from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
"""The step between two states of a stream: the golden ratio times 2^64, rounded to an odd number."""
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def mix(value: int) -> int:
    """Return 64 well-mixed bits for a number from 0 to 2^64 - 1. Each input has an output of its own."""
    value = ((value ^ (value >> 30)) * MIX_1) & MASK
    value = ((value ^ (value >> 27)) * MIX_2) & MASK
    return value ^ (value >> 31)


def mix_in_place(values: npt.NDArray[np.uint64], scratch: npt.NDArray[np.uint64]) -> None:
    """Replace each of `values` by its `mix`; `scratch` has the same shape and is overwritten."""
    import numpy as np

    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        np.right_shift(values, np.uint64(shift), out=scratch)
        np.bitwise_xor(values, scratch, out=values)
        np.multiply(values, np.uint64(factor), out=values)
    np.right_shift(values, np.uint64(31), out=scratch)
    np.bitwise_xor(values, scratch, out=values)
