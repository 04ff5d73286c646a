"""The layout of the key/value cache's pages, which the kernels of attention and the cache share.

A *page* holds the keys and values of 64 tokens in all layers. A layer's part has the keys of all heads, then the values
of all heads, and if they are stored in 8 bits, a float32 scale for each token and head of the keys, then of the values.
`attention.py` and `attention_8bit.py` say how the numbers of a head lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic, overload

from clearhead.config import GPTConfig
from clearhead.engine.llvm import F32, I8, I16, LANES, address, at
from clearhead.engine.variants import VARIANT
from clearhead.utils.jit import inline

PAGE = 64
"""Tokens whose keys and values lie together."""
MOST_QUERIES = VARIANT.queries
"""Neighbouring tokens that attend together."""
VECTORS = 4
"""Vectors of keys, or of a value's numbers, that are added up together."""


@inline
def padded_head(head_dim: int) -> int:
    """Return the numbers that a value takes in a page: its own, filled up to whole vectors."""
    return (head_dim + LANES - 1) // LANES * LANES


@inline
def padded_quads(head_dim: int) -> int:
    """Return the numbers that a key of 8 bits takes in a page: its own, filled up to whole quads."""
    return (head_dim + 3) // 4 * 4


def layer_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    """Return how many bytes a layer has in a page, for numbers of the type of the array `stored`."""
    raise NotImplementedError


@overload(layer_bytes, inline="always")
def _layer_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    return _layer_of_bytes if stored.dtype == types.int8 else _layer_of_floats


def _layer_of_floats(heads: Any, head_dim: Any, stored: Any) -> Any:
    return heads * PAGE * (head_dim + padded_head(head_dim)) * stored.itemsize


def _layer_of_bytes(heads: Any, head_dim: Any, stored: Any) -> Any:
    return heads * PAGE * (padded_quads(head_dim) + padded_head(head_dim) + 8)


def cache_type(weights: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the cache's numbers by that of the weights.

    float32 for float32; int8 if the weights are multiplied by 8-bit activations; uint16, for bfloat16, for the rest.
    """
    return np.dtype({"float32": "float32", "uint8": "int8", "uint32": "int8"}.get(weights.name, "uint16"))


def page_bytes(config: GPTConfig, stored: npt.DTypeLike) -> int:
    """Return the bytes of a page, for numbers of a type: float32, uint16 (bfloat16) or int8."""
    kind, value = np.dtype(stored), int(padded_head.py_func(config.head_dim))
    if kind == np.int8:
        token = int(padded_quads.py_func(config.head_dim)) + value + 8
    else:
        token = (config.head_dim + value) * kind.itemsize
    return config.n_layers * config.n_heads * PAGE * token


def copy_tokens(
    config: GPTConfig,
    stored: np.dtype[Any],
    old: npt.NDArray[np.uint8],
    new: npt.NDArray[np.uint8],
    count: int,
) -> None:
    """Copy the first `count` tokens of a page to another one."""
    layers, heads, wide = config.n_layers, config.n_heads, int(padded_head.py_func(config.head_dim))
    pages = [page.view(stored).reshape(layers, -1) for page in (old, new)]
    side = 4 if stored == np.int8 else 1  # keys' numbers, and values' tokens, that lie side by side
    keys = heads * PAGE * (int(padded_quads.py_func(config.head_dim)) if side == 4 else config.head_dim)
    values = keys + heads * PAGE * wide
    old_keys, new_keys = (page[:, :keys].reshape(layers, -1, PAGE, side) for page in pages)
    new_keys[:, :, :count] = old_keys[:, :, :count]
    old_values, new_values = (page[:, keys:values].reshape(layers, heads, PAGE // side, -1) for page in pages)
    new_values[:, :, : -(-count // side)] = old_values[:, :, : -(-count // side)]
    if side == 4:
        old_scales, new_scales = (page[:, values:].reshape(layers, -1, PAGE, 4) for page in pages)
        new_scales[:, :, :count] = old_scales[:, :, :count]


_ELEMENTS = {types.float32: F32, types.uint16: I16, types.int8: I8}


@intrinsic
def poke(typing_context: Any, number: Any, start: Any, index: Any) -> Any:
    """Write a float32, uint16 or int8 as number `index` of an array at address `start`."""
    element = _ELEMENTS[number]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[0], at(builder, address(builder, arguments[1]), arguments[2], element))
        return context.get_dummy_value()

    return types.void(number, types.int64, types.int64), code
