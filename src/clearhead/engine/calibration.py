"""Measure how a model uses its weights, which int4 needs for good rounding.

Sixteen levels are coarse, and errors in columns whose inputs are large or correlated add up. So the model writes some
text, and the second moments of each matrix's inputs, H = X^T X, are summed up meanwhile. With them `rounding.py` makes
up for one weight's error in those after it.

All of it runs in float32 in plain NumPy: the variants of the kernels round differently, and what is
measured must not depend on them.
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
"""Texts that are written, and their length. As many tokens in shorter texts tell less; longer texts take more steps."""
_TOGETHER = 2048
"""Inputs of a matrix that are multiplied together: with fewer, adding up the products takes longer than they do."""
_BLOCK = 256
"""Tokens whose probabilities are added up together when one is sampled."""


class _MomentSums:
    """Sum up X^T X for each matrix, some rows at a time."""

    def __init__(self) -> None:
        self._sums: Moments = {}
        self._waiting: dict[str, list[Floats]] = {}

    def add(self, name: str, inputs: Floats) -> None:
        """Count the inputs of a matrix, [rows, columns]; they must not change afterwards."""
        waiting = self._waiting.setdefault(name, [])
        waiting.append(inputs)
        if sum(map(len, waiting)) >= _TOGETHER:
            self._multiply(name)

    def _multiply(self, name: str) -> None:
        inputs = np.concatenate(self._waiting.pop(name))
        product = inputs.T @ inputs
        if name in self._sums:
            self._sums[name] += product
        else:
            self._sums[name] = product

    def finish(self) -> Moments:
        """Return the sums of all that was counted."""
        for name in list(self._waiting):
            self._multiply(name)
        return self._sums


class _Float32Model:
    """A GPT-2 in NumPy that runs sequences of one length together, a token of each at a time.

    Args:
        config: its shape.
        tensors: its weights by canonical name, float32.
        sequences: how many there are.
        length: the most tokens of each.
    """

    def __init__(self, config: GPTConfig, tensors: Tensors, sequences: int, length: int) -> None:
        self.config = config
        self.moments = _MomentSums()
        self._tensors = tensors
        shape = (config.n_layers, 2, sequences, config.n_heads, length, config.head_dim)
        self._cache = np.empty(shape, np.float32)

    def step(self, ids: npt.NDArray[np.int64], position: int) -> Floats:
        """Return the logits after a token of each sequence: [n] -> [n, V]."""
        config = self.config
        x = self._tensors["token_embedding.weight"][ids] + self._tensors["position_embedding.weight"][position]
        x = np.asarray(x, np.float32)
        for layer in range(config.n_layers):
            x = self.block(layer, x, position)
        return self.linear("token_embedding" if config.tie_weights else "head", self.norm("final_norm", x))

    def linear(self, name: str, inputs: Floats) -> Floats:
        """Apply a linear layer, and count its inputs."""
        self.moments.add(f"{name}.weight", inputs)
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

    def block(self, layer: int, x: Floats, position: int) -> Floats:
        """Apply a block to a token of each sequence, [n, C], and keep its keys and values."""
        name, config = f"blocks.{layer}", self.config
        qkv = self.linear(f"{name}.attention.qkv", self.norm(f"{name}.norm_1", x))
        queries, keys, values = qkv.reshape(len(x), 3, config.n_heads, config.head_dim).transpose(1, 0, 2, 3)
        self._cache[layer, 0, :, :, position], self._cache[layer, 1, :, :, position] = keys, values
        all_keys, all_values = self._cache[layer, :, :, :, : position + 1]
        x = x + self.linear(f"{name}.attention.out", _attention(queries, all_keys, all_values))
        wide = self.linear(f"{name}.feed_forward.up", self.norm(f"{name}.norm_2", x))
        _activate(wide, config.activation)
        return np.asarray(x + self.linear(f"{name}.feed_forward.down", wide), np.float32)


def calibrate(config: GPTConfig, tensors: Tensors, seed: int = 0) -> tuple[npt.NDArray[np.int64], Moments]:
    """Let a model write texts, and measure the inputs of its matrices meanwhile.

    Each text starts at the last token id (GPT-2's end of text), and each token is sampled from the model's own
    distribution.

    Args:
        config: the model's shape.
        tensors: by canonical name; float32.
        seed: of the sampling.

    Returns:
        the texts, int64 [32, up to 128], and X^T X of the inputs of every matrix, from all tokens but each text's last,
        by the matrix's canonical name, float32 [columns, columns]. The head's moments are under the token embedding's
        name if they are tied.
    """
    random = np.random.default_rng(seed)
    length = min(_TOKENS, config.context_length)
    ids = np.full((_SEQUENCES, length), config.vocab_size - 1, np.int64)
    model = _Float32Model(config, tensors, _SEQUENCES, length)
    for position in range(length - 1):
        logits = model.step(ids[:, position], position)
        ids[:, position + 1] = _sample(logits, random.random(_SEQUENCES))
    return ids, model.moments.finish()


def _sample(logits: Floats, uniform: npt.NDArray[np.float64]) -> list[int]:
    """Return a token for each row of logits, [n, V]: the one at which the sum of probabilities passes its number.

    Probabilities are added up in blocks, so that only one block of a row is added up number by number.
    """
    n, size = logits.shape
    blocks = -(-size // _BLOCK)
    weights = np.zeros((n, blocks * _BLOCK), np.float32)
    np.exp(logits - logits.max(axis=1, keepdims=True), out=weights[:, :size])
    ends = np.cumsum(weights.reshape(n, blocks, _BLOCK).sum(axis=2), axis=1, dtype=np.float64)
    found = []
    for row, goal in enumerate(uniform * ends[:, -1]):
        block = int(np.searchsorted(ends[row, :-1], goal, "right"))
        before = ends[row, block - 1] if block else 0.0
        inside = np.cumsum(weights[row, block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
        last = int(np.flatnonzero(np.diff(inside, prepend=0))[-1])  # rounding must not lead past it
        found.append(block * _BLOCK + min(last, int(np.searchsorted(inside, goal - before, "right"))))
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
    """Apply attention for the last token of n sequences.

    Queries are [n, H, D], keys and values [n, H, S, D]; the result is [n, C].
    """
    n, _, width = queries.shape
    scores = (keys @ queries[..., None])[..., 0] / np.float32(math.sqrt(width))  # [n, H, S]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights[..., None, :] @ values).reshape(n, -1)
