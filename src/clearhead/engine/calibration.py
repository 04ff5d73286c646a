"""Measure how a model uses its weights, which int4 needs for good rounding.

Sixteen levels are coarse, and errors in columns whose inputs are large or correlated add up. So the model writes some
text, and the second moments of each matrix's inputs, H = X^T X, are computed from it. With them `rounding.py` makes up
for one weight's error in those after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig

if TYPE_CHECKING:
    from clearhead.inference.runner import Runner

Moments = dict[str, npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float32]

_SEQUENCES, _TOKENS = 16, 256


def write_text(runner: Runner, seed: int = 0) -> npt.NDArray[np.int64]:
    """Sample texts from a model, starting at its last token id (GPT-2's end of text): int64 [16, up to 256].

    Each token is sampled from the model's own distribution.
    """
    random = np.random.default_rng(seed)
    length = min(_TOKENS, runner.config.context_length)
    ids = np.full((_SEQUENCES, length), runner.config.vocab_size - 1, np.int64)
    slots = [runner.open() for _ in range(_SEQUENCES)]
    try:
        for position in range(length - 1):
            logits = runner.extend([(slot, [int(row[position])]) for slot, row in zip(slots, ids, strict=True)])
            sums = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
            draws = random.random(_SEQUENCES) * sums[:, -1]
            ids[:, position + 1] = [
                np.searchsorted(row[:-1], draw, "right") for row, draw in zip(sums, draws, strict=True)
            ]
    finally:
        for slot in slots:
            runner.close(slot)
    return ids


def moments(config: GPTConfig, tensors: Mapping[str, npt.NDArray[Any]], ids: npt.NDArray[np.int64]) -> Moments:
    """Return X^T X of the inputs of every matrix, by the matrix's canonical name, float32 [columns, columns].

    The model runs in plain NumPy, a layer at a time, as the compiled code does not expose its intermediate values. The
    head's moments are under "head.weight", and under "token_embedding.weight" too if they are tied.

    Args:
        config: the model's shape.
        tensors: by canonical name; float32.
        ids: the text, [sequences, tokens].
    """
    found: Moments = {}
    n, length = ids.shape
    x = (tensors["token_embedding.weight"][ids] + tensors["position_embedding.weight"][:length]).reshape(n * length, -1)

    def linear(name: str, inputs: Floats) -> Floats:
        found[f"{name}.weight"] = inputs.T @ inputs
        outputs = inputs @ np.asarray(tensors[f"{name}.weight"], np.float32).T
        if f"{name}.bias" in tensors:
            outputs += tensors[f"{name}.bias"]
        return outputs

    def norm(name: str, inputs: Floats) -> Floats:
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + config.norm_eps)
        return np.asarray(centred * scale * tensors[f"{name}.weight"] + tensors[f"{name}.bias"], np.float32)

    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        qkv = linear(f"{block}.attention.qkv", norm(f"{block}.norm_1", x))
        x = x + linear(f"{block}.attention.out", _attention(qkv, config, n))
        wide = linear(f"{block}.feed_forward.up", norm(f"{block}.norm_2", x))
        _activate(wide, config.activation)
        x = x + linear(f"{block}.feed_forward.down", wide)
    final = norm("final_norm", x)
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


def _attention(qkv: Floats, config: GPTConfig, n: int) -> Floats:
    """Apply causal attention to n sequences: [n * T, 3C] -> [n * T, C]."""
    heads, length = config.n_heads, len(qkv) // n
    queries, keys, values = qkv.reshape(n, length, 3, heads, -1).transpose(2, 0, 3, 1, 4)  # each [n, H, T, D]
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    mixed = np.empty_like(values)
    for one in range(n):
        scores = queries[one] @ keys[one].transpose(0, 2, 1) / np.float32(math.sqrt(config.head_dim)) + future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[one] = (weights / weights.sum(axis=-1, keepdims=True)) @ values[one]
    return mixed.transpose(0, 2, 1, 3).reshape(n * length, -1)
