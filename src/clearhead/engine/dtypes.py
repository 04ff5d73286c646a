"""How the engine stores weights: four dtypes, and how numbers are rounded to each.

A matrix [rows, columns] becomes panels (see `products.py`), with rows and columns padded with zeros. What one weight
takes, with its share of a scale:

    float32     32 bits
    bfloat16    16 bits     the nearest number with 8 bits of mantissa
    int8        8.25 bits   integers from -127 to 127 times a scale per 64 columns (their greatest magnitude / 127), or
                            8.04 bits with a scale per row if activations have 16 bits
    int4        4.5 bits    integers from -8 to 7 times a scale per group of 32, see `rounding.py`

How int8 and int4 lie in memory depends on the activations that they are multiplied by: pairs of columns for 16-bit
activations, quads for 8-bit ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clearhead.engine.panels import SCALE_COLUMNS, padded_columns, padded_rows
from clearhead.engine.variants import VARIANT

DTYPES = ("float32", "bfloat16", "int8", "int4")
ACTIVATIONS = ("8bit", "16bit")
"""How finely activations are rounded for int8 and int4 weights."""


def storage(dtype: str, activations: str, rows: int, columns: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """Return the types and sizes of a matrix's arrays, "weights" and "scales".

    The type of "weights" is different for each way to store weights; the kernels are chosen by it.
    """
    n = padded_rows(rows) * padded_columns(columns)
    kind = np.dtype(_TYPES[dtype, activations] if dtype.startswith("int") else _TYPES[dtype, ""])
    size = n // 8 if dtype == "int4" else n  # an array of int4 has eight in a number
    if kind in SCALE_COLUMNS:
        return {"weights": (kind, size), "scales": (np.dtype(np.uint16), n // SCALE_COLUMNS[kind])}
    return {"weights": (kind, size), "scales": (np.dtype(np.float32), padded_rows(rows) if dtype == "int8" else 0)}


_TYPES: dict[tuple[str, str], type[np.generic]] = {
    ("float32", ""): np.float32,
    ("bfloat16", ""): np.uint16,
    ("int8", "16bit"): np.int8,
    ("int8", "8bit"): np.uint8,
    ("int4", "16bit"): np.int32,
    ("int4", "8bit"): np.uint32,
}


def activation_type(weights: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the activations that weights of a type are multiplied by; uint16 stands for bfloat16."""
    kind = {"uint16": "uint16" if VARIANT.bfloat16 else "float32", "int8": "int16", "int32": "int16"}
    kind |= {"float32": "float32", "uint8": "int8", "uint32": "int8"}
    return np.dtype(kind[weights.name])
