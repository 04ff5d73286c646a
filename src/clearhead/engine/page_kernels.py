"""What compiled code needs to know of the cache's pages, see `pages.py`."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic, overload
from numba.np import numpy_support

from clearhead.engine import pages
from clearhead.engine.llvm import F32, I8, I16, I32, address, at
from clearhead.engine.pages import PAGE
from clearhead.utils.jit import inline

VECTORS = 4
"""Vectors of keys, or of a value's numbers, that are added up together."""


padded_head, padded_quads = inline(pages.padded_head), inline(pages.padded_quads)
padded_pairs = inline(pages.padded_pairs)


def layer_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    """Return how many bytes a layer has in a page, for numbers of the type of the array `stored`."""
    raise NotImplementedError


@overload(layer_bytes, inline="always")
def _layer_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    if stored.dtype == types.int8:
        return _layer_of_bytes
    return _layer_of_pairs if pages.side_of(numpy_support.as_dtype(stored.dtype)) == 2 else _layer_of_floats


def _layer_of_floats(heads: Any, head_dim: Any, stored: Any) -> Any:
    return heads * PAGE * (head_dim + padded_head(head_dim)) * stored.itemsize


def _layer_of_pairs(heads: Any, head_dim: Any, stored: Any) -> Any:
    return heads * PAGE * (padded_pairs(head_dim) + padded_head(head_dim)) * stored.itemsize


def _layer_of_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    return heads * PAGE * (padded_quads(head_dim) + padded_head(head_dim) + 8)


_ELEMENTS = {types.float32: F32, types.uint32: I32, types.uint16: I16, types.int8: I8}


@intrinsic
def poke(typing_context: Any, number: Any, start: Any, index: Any) -> Any:
    """Write a float32, uint32, uint16 or int8 as number `index` of an array at address `start`."""
    element = _ELEMENTS[number]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[0], at(builder, address(builder, arguments[1]), arguments[2], element))
        return context.get_dummy_value()

    return types.void(number, types.int64, types.int64), code


@intrinsic
def peek(typing_context: Any, start: Any, index: Any) -> Any:
    """Return number `index` of an array of uint32 at address `start`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(at(builder, address(builder, arguments[0]), arguments[1], I32))

    return types.uint32(types.int64, types.int64), code
