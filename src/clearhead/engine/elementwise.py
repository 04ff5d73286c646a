"""What happens to one token's vector at a time: norms, activations, and rounding to whole numbers.

Each function handles one row and no other, in one order: so a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from clearhead.engine.llvm import LANES, bits_as_float, float_as_bits, row_square_sum, row_sum
from clearhead.utils.jit import inline, kernel

_ROUND = np.float32(12582912.0)  # 1.5 · 2²³: added and taken away again it rounds to a whole number, half to even
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, the first with few bits, so that n · high is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_SQRT_2_OVER_PI = np.float32(math.sqrt(2 / math.pi))
_CUBIC = np.float32(0.044715)
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)


@inline
def exponential(x: Any) -> Any:
    """e to the x in float32, to about two units of the last place; below -87 as at -87.

    x = n ln 2 + r with |r| at most ln 2 / 2; e^r by its Taylor series to r^7 (the remainder is under 1e-8); 2^n by its
    bits. There is no branch, so that a loop over a row becomes vector instructions.
    """
    x = min(max(x, _LEAST), _MOST)
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + _HALF
    p = p * r + _ONE
    p = p * r + _ONE
    return p * bits_as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@kernel
def round_to_bfloat16(number: Any) -> Any:
    """The bits of the nearest bfloat16, half to even; NaN stays NaN."""
    bits = np.uint32(float_as_bits(np.float32(number)))
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(64))
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@kernel
def normalize(x: Any, row: int, width: int, weight: Any, bias: Any, eps: float, out: Any) -> None:
    """LayerNorm (Ba et al. 2016, equation 4) of x[row, :width] into out[row, :width]; the rest of the row is 0."""
    padded = (width + LANES - 1) // LANES * LANES
    mean = row_sum(x, row, padded) / np.float32(width)  # x is 0 beyond its width
    for i in range(width):
        out[row, i] = x[row, i] - mean
    for i in range(width, padded):
        out[row, i] = np.float32(0)
    variance = row_square_sum(out, row, padded) / np.float32(width)
    scale = _ONE / np.float32(math.sqrt(variance + np.float32(eps)))
    for i in range(width):
        out[row, i] = out[row, i] * scale * weight[i] + bias[i]


@kernel
def gelu_tanh(y: Any, row: int, first: int, last: int) -> None:
    """The tanh dtype of GELU (Hendrycks and Gimpel 2016) on y[row, first:last].

    0.5 x (1 + tanh u) = x / (1 + e^(-2u)), with u = sqrt(2/pi) (x + 0.044715 x³).
    """
    for place in range(first, last):
        i = np.uint64(place)  # it cannot count from the end, so nothing is to be checked, and the loop becomes vectors
        x = y[row, i]
        u = _SQRT_2_OVER_PI * (x + _CUBIC * x * x * x)
        y[row, i] = x / (_ONE + exponential(np.float32(-2) * u))


@kernel
def gelu_exact(y: Any, row: int, first: int, last: int) -> None:
    """x times the share of a normal distribution below x, on y[row, first:last]."""
    for place in range(first, last):
        i = np.uint64(place)
        x = y[row, i]
        y[row, i] = x * _HALF * (_ONE + np.float32(math.erf(x * np.float32(math.sqrt(0.5)))))


@kernel
def relu(y: Any, row: int, first: int, last: int) -> None:
    """max(x, 0) on y[row, first:last]; NaN stays NaN."""
    for place in range(first, last):
        i = np.uint64(place)
        x = y[row, i]
        y[row, i] = np.float32(0) if x < np.float32(0) else x


ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu")
"""The activation functions, in the order of the numbers that kernels know them by."""


def quantize_activations(
    source: Any, row: int, width: int, padded: int, limit: float, ready: Any, scales: Any, to: int
) -> None:
    """Puts source[row, :width] into ready[to] in the dtype that the weights' format multiplies.

    float32 is copied. For int16 the numbers are divided by scales[to] = (greatest magnitude) / limit and rounded.
    ready[to, width:padded] becomes 0.
    """


@overload(quantize_activations, inline="never")
def _quantize_activations(
    source: Any, row: Any, width: Any, padded: Any, limit: Any, ready: Any, scales: Any, to: Any
) -> Any:
    if ready.dtype == types.float32:
        return _copy
    return _quantize


def _copy(source: Any, row: Any, width: Any, padded: Any, limit: Any, ready: Any, scales: Any, to: Any) -> Any:
    for i in range(width):
        ready[to, i] = source[row, i]
    for i in range(width, padded):
        ready[to, i] = np.float32(0)


def _quantize(source: Any, row: Any, width: Any, padded: Any, limit: Any, ready: Any, scales: Any, to: Any) -> Any:
    bits = np.int32(0)
    for i in range(width):
        # Magnitudes are ordered as their bits are, and the greatest of whole numbers is found eight at a time.
        bits = np.int32(max(bits, np.int32(float_as_bits(source[row, i]) & np.int32(0x7FFFFFFF))))
    greatest = bits_as_float(bits)
    scales[to] = greatest / np.float32(limit)
    inverse = np.float32(limit) / greatest if greatest > 0 else np.float32(0)
    for i in range(width):
        ready[to, i] = np.int16(np.int32((source[row, i] * inverse + _ROUND) - _ROUND))
    for i in range(width, padded):
        ready[to, i] = np.int16(0)
