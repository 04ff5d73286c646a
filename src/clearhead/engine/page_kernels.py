"""What compiled code needs to know of the cache's pages, see `pages.py`."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic, overload
from numba.np import numpy_support

from clearhead.engine import pages
from clearhead.engine.llvm import F32, I8, I16, I32, I64, Loop, address, at, data, load, splat, store, vector
from clearhead.engine.pages import PAGE
from clearhead.engine.variants import LANES
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
def write_key(typing_context: Any, numbers: Any, words: Any, flipped: Any, start: Any) -> Any:
    """Write a token's key into a page, where the words of all tokens lie side by side.

    Args:
        numbers: int8 or uint16, what the words are made of, with zeros after the last number.
        words: of 32 bits each: a quad or a pair.
        flipped: uint32; the bits to turn over in each word.
        start: the address of the token's first word; the next one is PAGE words further.
    """

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        source = data(context, b, signature, arguments, 0)
        with Loop(b, arguments[1], []) as loop:
            word = b.load(at(b, source, loop.count, I32))
            to = at(b, address(b, arguments[3]), b.mul(loop.count, I64(PAGE)), I32)
            b.store(b.xor(word, arguments[2]), to)
        return context.get_dummy_value()

    n = types.int64
    return types.void(numbers, n, types.uint32, n), code


@intrinsic
def write_value(typing_context: Any, numbers: Any, wide: Any, side: Any, start: Any) -> Any:
    """Write a token's value into a page, where a word has the same number of 4 tokens (int8) or 2 (bfloat16).

    Args:
        numbers: int8 or uint16 [`wide`, a multiple of LANES].
        wide: how many.
        side: the token's place in a word. The places after it become 0.
        start: the address of the tokens' first word.
    """
    element = _ELEMENTS[numbers.dtype]

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        source = data(context, b, signature, arguments, 0)
        words = vector(I32, LANES)
        shift = b.mul(b.trunc(arguments[2], I32), I32(element.width))
        kept = splat(b, b.sub(b.shl(I32(1), shift), I32(1)), LANES)
        shifts = splat(b, shift, LANES)
        with Loop(b, b.sdiv(arguments[1], I64(LANES)), []) as loop:
            first = b.mul(loop.count, I64(LANES))
            own = b.zext(load(b, at(b, source, first, element), element, LANES), words)
            to = at(b, address(b, arguments[3]), first, I32)
            store(b, b.or_(b.and_(load(b, to, I32, LANES), kept), b.shl(own, shifts)), to)
        return context.get_dummy_value()

    n = types.int64
    return types.void(numbers, n, n, n), code
