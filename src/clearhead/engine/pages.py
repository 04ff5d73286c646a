"""The layout of the key/value cache's pages, which the kernels of attention and the cache share.

A *page* holds the keys and values of 64 tokens in all layers. A layer's part has the keys of all heads, then the values
of all heads, and if they are stored in 8 bits, a float32 scale for each token and head of the keys, then of the values.
`attention.py` and `attention_8bit.py` say how the numbers of a head lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.engine.variants import LANES, VARIANT

PAGE = 64
"""Tokens whose keys and values lie together."""
MOST_QUERIES = VARIANT.queries
"""Neighbouring tokens that attend together."""


def padded_head(head_dim: int) -> int:
    """Return the numbers that a value takes in a page: its own, filled up to whole vectors."""
    return (head_dim + LANES - 1) // LANES * LANES


def padded_quads(head_dim: int) -> int:
    """Return the numbers that a key of 8 bits takes in a page: its own, filled up to whole quads."""
    return (head_dim + 3) // 4 * 4


def padded_pairs(head_dim: int) -> int:
    """Return the numbers that a key of bfloat16 takes in a page if it is multiplied in pairs."""
    return (head_dim + 1) // 2 * 2


def side_of(stored: np.dtype[Any]) -> int:
    """Return how many numbers of a key, or tokens of values, lie side by side: those that are multiplied together."""
    return {"int8": 4, "uint16": 2 if VARIANT.bfloat16 else 1}.get(stored.name, 1)


def cache_type(weights: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the cache's numbers by that of the weights.

    float32 for float32; int8 if the weights are multiplied by 8-bit activations; uint16, for bfloat16, for the rest.
    """
    return np.dtype({"float32": "float32", "uint8": "int8", "uint32": "int8"}.get(weights.name, "uint16"))


def page_bytes(config: GPTConfig, stored: npt.DTypeLike) -> int:
    """Return the bytes of a page, for numbers of a type: float32, uint16 (bfloat16) or int8."""
    kind = np.dtype(stored)
    side = side_of(kind)
    numbers = -(-config.head_dim // side) * side + padded_head(config.head_dim)
    scales = 8 if kind == np.int8 else 0
    return config.n_layers * config.n_heads * PAGE * (numbers * kind.itemsize + scales)


def copy_tokens(
    config: GPTConfig,
    stored: np.dtype[Any],
    old: npt.NDArray[np.uint8],
    new: npt.NDArray[np.uint8],
    count: int,
) -> None:
    """Copy the first `count` tokens of a page to another one."""
    layers, heads, wide = config.n_layers, config.n_heads, padded_head(config.head_dim)
    pages = [page.view(stored).reshape(layers, -1) for page in (old, new)]
    side = side_of(stored)
    keys = heads * PAGE * (-(-config.head_dim // side) * side)
    values = keys + heads * PAGE * wide
    old_keys, new_keys = (page[:, :keys].reshape(layers, -1, PAGE, side) for page in pages)
    new_keys[:, :, :count] = old_keys[:, :, :count]
    old_values, new_values = (page[:, keys:values].reshape(layers, heads, PAGE // side, -1) for page in pages)
    new_values[:, :, : -(-count // side)] = old_values[:, :, : -(-count // side)]
    if stored == np.int8:
        old_scales, new_scales = (page[:, values:].reshape(layers, -1, PAGE, 4) for page in pages)
        new_scales[:, :, :count] = old_scales[:, :, :count]
