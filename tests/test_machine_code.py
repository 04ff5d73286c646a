"""Compiled functions that are called through a table: arguments and results are what Python's are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.utils.jit import entry


class _Pair(NamedTuple):
    weights: np.ndarray
    factor: float


@entry
def _same(x: Any) -> Any:
    return x


@entry
def _both(x: Any, y: Any) -> Any:
    return x, y


@entry
def _nothing(numbers: Any, index: int) -> None:
    numbers[index] += 1


@entry
def _weighted(pair: Any, rows: Any, bias: Any) -> Any:
    """Add up a matrix times a factor, plus a bias if there is one; nested arguments of every kind."""
    matrix, (first, last) = pair.weights, rows
    total = 0.0
    for i in range(first, last):
        for j in range(matrix.shape[1]):
            total += matrix[i, j] * pair.factor
    if bias is not None:
        total += bias[0]
    return total


@settings(deadline=None)
@given(number=st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_come_back(number: int) -> None:
    assert _same(number) == number
    assert _same(np.uint64(number & (2**64 - 1))) == number & (2**64 - 1)


@settings(deadline=None)
@given(number=st.floats())
def test_floats_come_back(number: float) -> None:
    assert np.float64(_same(number)).tobytes() == np.float64(number).tobytes()


@settings(deadline=None)
@given(number=st.floats(width=32, allow_nan=False), flag=st.booleans())
def test_numbers_of_numpy_and_truth_come_back(number: float, flag: bool) -> None:
    found = _both(np.float32(number), flag)
    assert found == (number, flag)
    assert found[1] is flag
    assert _both(np.int8(-3), np.uint16(65535)) == (-3, 65535)


@pytest.mark.parametrize("order", ["C", "F", "A", "read only", "unaligned"])
@pytest.mark.parametrize("biased", [False, True])
def test_arrays_of_every_kind(order: str, biased: bool) -> None:
    matrix = np.arange(24, dtype=np.float32).reshape(4, 6)
    if order == "F":
        matrix = np.asfortranarray(matrix)
    elif order == "A":
        matrix = np.arange(96, dtype=np.float32).reshape(8, 12)[::2, ::2]
    elif order == "read only":
        matrix.flags.writeable = False
    elif order == "unaligned":
        memory = np.zeros(matrix.nbytes + 1, np.uint8)
        memory[1:] = np.frombuffer(matrix.tobytes(), np.uint8)
        matrix = memory[1:].view(np.float32).reshape(4, 6)
        assert not matrix.flags.aligned
    found = _weighted(_Pair(matrix, 0.5), (1, 3), np.ones(1) if biased else None)
    assert found == pytest.approx(matrix[1:3].sum() * 0.5 + biased)


def test_a_bound_call_is_repeated_with_another_number() -> None:
    counts = np.zeros(3, np.int64)
    call = _nothing.bind(counts, 0)
    assert call() is None
    call.set(1, 2)
    call()
    call()
    assert counts.tolist() == [1, 0, 2]


def test_what_compiled_code_cannot_take_is_refused() -> None:
    with pytest.raises(TypeError, match="not str"):
        _same("text")


def test_nan_in_a_tuple() -> None:
    assert math.isnan(_both(1, math.nan)[1])
