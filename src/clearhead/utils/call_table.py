"""How arguments reach machine code without Numba: as one table of int64, which a C function receives.

Numba builds arguments from Python's objects by itself, but only after it was imported, which takes longer than all else
that a short run does. So compiled code takes the address of a table. Its first numbers are for results; then come
the arguments, one after another: a number as its bits, an array as its address, lengths and strides, a tuple as its
elements. The *signature* says what each of them is; Numba's types are made from it when something is compiled.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

RESULTS = 8
"""Numbers at the beginning of a table that are for results."""

Signature = tuple[Any, ...]
"""What an argument is: a kind, and what belongs to it.

("number", name of a dtype), ("none",), ("array", dtype, dimensions, "C" | "F" | "A", writable, aligned),
("tuple", elements), or ("named", module, class, elements).
"""

_FLOAT64, _INT64, _BOOL, _NONE = ("number", "float64"), ("number", "int64"), ("number", "bool"), ("none",)


def describe(argument: Any, numbers: list[int]) -> Signature:
    """Return an argument's signature, and append what the table holds of it to `numbers`.

    Raises:
        TypeError: if compiled code cannot take it.
    """
    if isinstance(argument, np.ndarray):
        numbers += (argument.ctypes.data, *argument.shape, *argument.strides)
        flags = argument.flags
        order = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        return ("array", argument.dtype.str, argument.ndim, order, flags.writeable, flags.aligned)
    if isinstance(argument, tuple):
        elements = tuple(describe(one, numbers) for one in argument)
        kind = type(argument)
        return ("tuple", elements) if kind is tuple else ("named", kind.__module__, kind.__qualname__, elements)
    if isinstance(argument, bool):
        numbers.append(argument)
        return _BOOL
    if isinstance(argument, int):
        numbers.append(argument)
        return _INT64
    if isinstance(argument, float):
        numbers.append(_bits(argument))
        return _FLOAT64
    if isinstance(argument, np.generic):
        numbers.append(int.from_bytes(argument.tobytes(), sys.byteorder))
        return ("number", argument.dtype.name)
    if argument is None:
        return _NONE
    raise TypeError(f"compiled code takes numbers, arrays and tuples of them, not {type(argument).__name__}.")


def read_results(kinds: Sequence[str], table: Any) -> Any:
    """Return what compiled code left in a table: None, a number, or a tuple of numbers.

    Args:
        kinds: the name of each result's dtype, after "tuple" if the result is one.
        table: the table, an array of int64.
    """
    if not kinds:
        return None
    if kinds[0] == "tuple":
        return tuple(_read(kind, number) for kind, number in zip(kinds[1:], table, strict=False))
    return _read(kinds[0], table[0])


def _read(kind: str, number: int) -> Any:
    if kind == "float64":
        return struct.unpack("=d", struct.pack("=q", number))[0]
    if kind == "uint64":
        return number & 0xFFFFFFFFFFFFFFFF
    return bool(number) if kind == "bool" else number


def _bits(number: float) -> int:
    """Return the bits of a float64 as an int64."""
    found: int = struct.unpack("=q", struct.pack("=d", number))[0]
    return found
