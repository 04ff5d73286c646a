"""Measure how a model uses its weights, which int4 needs for good rounding.

Sixteen levels are coarse, and errors in columns whose inputs are large or correlated add up. So the model writes some
text, and the second moments of each matrix's inputs, H = X^T X, are computed from it. With them `rounding.py` makes up
for one weight's error in those after it.

All of it runs in float32 in plain NumPy: the variants of the kernels round differently, and must get the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig

Moments = dict[str, npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[Any]]

_SEQUENCES, _TOKENS = 32, 128
"""Texts that are written, and their length. A step reads all weights, so many short texts take less time."""


class _Float32Model:
    """A GPT-2 in NumPy, a layer at a time.

    Args:
        config: its shape.
        tensors: its weights by canonical name, float32.
    """

    def __init__(self, config: GPTConfig, tensors: Tensors) -> None:
        self.config = config
        self._tensors = tensors
        self.moments: Moments | None = None

    def embed(self, ids: npt.NDArray[np.int64], start: int) -> Floats:
        """Return the vectors of tokens at the positions from `start` on: [n, T] -> [n * T, C]."""
        positions = self._tensors["position_embedding.weight"][start : start + ids.shape[1]]
        vectors = self._tensors["token_embedding.weight"][ids] + positions
        return np.asarray(vectors, np.float32).reshape(ids.size, -1)

    def linear(self, name: str, inputs: Floats) -> Floats:
        """Apply a linear layer, and keep the moments of its inputs if they are wanted."""
        if self.moments is not None:
            self.moments[f"{name}.weight"] = inputs.T @ inputs
        outputs = inputs @ np.asarray(self._tensors[f"{name}.weight"], np.float32).T
        if f"{name}.bias" in self._tensors:
            outputs += self._tensors[f"{name}.bias"]
        return outputs

    def norm(self, name: str, inputs: Floats) -> Floats:
        """Apply a LayerNorm."""
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.config.norm_eps)
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return np.asarray(centred * scale * weight + bias, np.float32)

    def block(self, layer: int, x: Floats, keys: Floats, values: Floats, start: int) -> Floats:
        """Apply a block to the tokens from position `start` on: [n * T, C].

        `keys` and `values`, [n, H, positions, D], hold those of the tokens before, and receive the new ones.
        """
        name, config = f"blocks.{layer}", self.config
        qkv = self.linear(f"{name}.attention.qkv", self.norm(f"{name}.norm_1", x))
        shape = (len(keys), len(x) // len(keys), 3, config.n_heads, config.head_dim)
        queries, new_keys, new_values = qkv.reshape(shape).transpose(2, 0, 3, 1, 4)  # each [n, H, T, D]
        end = start + shape[1]
        keys[:, :, start:end], values[:, :, start:end] = new_keys, new_values
        mixed = _attention(queries, keys[:, :, :end], values[:, :, :end])
        x = x + self.linear(f"{name}.attention.out", mixed)
        wide = self.linear(f"{name}.feed_forward.up", self.norm(f"{name}.norm_2", x))
        _activate(wide, config.activation)
        return np.asarray(x + self.linear(f"{name}.feed_forward.down", wide), np.float32)

    def new_cache(self, sequences: int, length: int) -> Floats:
        """Return room for keys and values: [layers, 2, n, H, length, D]."""
        config = self.config
        return np.empty((config.n_layers, 2, sequences, config.n_heads, length, config.head_dim), np.float32)


def write_text(config: GPTConfig, tensors: Tensors, seed: int = 0) -> npt.NDArray[np.int64]:
    """Sample texts from a model, starting at its last token id (GPT-2's end of text): int64 [32, up to 128].

    Each token is sampled from the model's own distribution.
    """
    random = np.random.default_rng(seed)
    length = min(_TOKENS, config.context_length)
    ids = np.full((_SEQUENCES, length), config.vocab_size - 1, np.int64)
    model = _Float32Model(config, tensors)
    cache = model.new_cache(_SEQUENCES, length)
    head = tensors["token_embedding.weight" if config.tie_weights else "head.weight"]
    for position in range(length - 1):
        x = model.embed(ids[:, position : position + 1], position)
        for layer in range(config.n_layers):
            x = model.block(layer, x, cache[layer, 0], cache[layer, 1], position)
        logits = model.norm("final_norm", x) @ np.asarray(head, np.float32).T
        sums = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
        draws = random.random(_SEQUENCES) * sums[:, -1]
        ids[:, position + 1] = [np.searchsorted(row[:-1], draw, "right") for row, draw in zip(sums, draws, strict=True)]
    return ids


def moments(config: GPTConfig, tensors: Tensors, ids: npt.NDArray[np.int64]) -> Moments:
    """Return X^T X of the inputs of every matrix, by the matrix's canonical name, float32 [columns, columns].

    The head's moments are under "head.weight", and under "token_embedding.weight" too if they are tied.

    Args:
        config: the model's shape.
        tensors: by canonical name; float32.
        ids: the text, [sequences, tokens].
    """
    model = _Float32Model(config, tensors)
    model.moments = found = {}
    keys, values = model.new_cache(*ids.shape)[0]  # one layer's, as each layer sees the whole text at once
    x = model.embed(ids, 0)
    for layer in range(config.n_layers):
        x = model.block(layer, x, keys, values, 0)
    final = model.norm("final_norm", x)
    found["head.weight"] = final.T @ final
    if config.tie_weights:
        found["token_embedding.weight"] = found["head.weight"]
    return found


def _activate(x: Floats, activation: str) -> None:
    """Apply the activation function in place, 64 rows at a time: fresh memory for each step would take long.

    Both variants of GELU use the tanh approximation, as they differ by less than rounding does.
    """
    if activation == "relu":
        np.maximum(x, 0, out=x)
        return
    for start in range(0, len(x), 64):
        rows = x[start : start + 64]
        inner = np.float32(math.sqrt(2 / math.pi)) * (rows + np.float32(0.044715) * (rows * rows * rows))
        rows *= np.float32(0.5) * (1 + np.tanh(inner))


def _attention(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Apply causal attention to n sequences, whose queries are those of the last T of S tokens.

    Queries are [n, H, T, D], keys and values [n, H, S, D]; the result is [n * T, C].
    """
    n, heads, length, width = queries.shape
    seen = keys.shape[2]
    future = np.triu(np.full((length, seen), -np.inf, np.float32), seen - length + 1)
    mixed = np.empty((n, length, heads, width), np.float32)
    for one in range(n):
        scores = queries[one] @ keys[one].transpose(0, 2, 1) / np.float32(math.sqrt(width)) + future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[one] = ((weights / weights.sum(axis=-1, keepdims=True)) @ values[one]).transpose(1, 0, 2)
    return mixed.reshape(n * length, -1)
