"""The network in NumPy: what `model.py` computes, without PyTorch, and with a name for every value on the way.

    model = load_numpy_model(config, tensors)
    for name, values in model.activations(ids):
        print(name, values.shape)

Each part of the network is a generator that yields its values in the order in which it computes them; the last one is
its result. Whoever iterates keeps what it wants and may stop early. `clearhead.lens.names` describes the values.

There is no dropout and no KV cache: this is for reading, watching and checking a model, and `engine/` is for speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.anatomy.count import count_parameters
from clearhead.config import GPTConfig
from clearhead.utils.progress import ByteProgress

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]
NamedValues = Iterator[tuple[str, Floats]]


@dataclass(frozen=True)
class NumpyModel:
    """A GPT-2 as arrays.

    Attributes:
        config: its shape.
        weights: float32, by canonical name; matrices are [out, in].
    """

    config: GPTConfig
    weights: Weights

    def activations(self, ids: npt.ArrayLike) -> NamedValues:
        """Run token ids, int [..., T], and yield the name and the value of each activation when it is computed."""
        ids = np.asarray(ids)
        token = self.weights["token_embedding.weight"][ids]  # [..., T, C]
        yield "embedding.token", token
        position = self.weights["position_embedding.weight"][: ids.shape[-1]]  # [T, C]
        yield "embedding.position", position
        x = token + position  # [..., T, C]
        yield "embedding", x
        for layer in range(self.config.n_layers):
            for name, value in block(x, self.block_weights(layer), self.config):
                yield f"blocks.{layer}.{name}", value
            x = value  # the last one: the block's output
        for name, normed in norm(x, "final_norm", self.weights, self.config):
            yield name, normed
        yield "logits", linear(normed, "head", self.weights)  # [..., T, V]

    def read_residual(self, residual: Floats) -> Floats:
        """Return the logits [..., V] that the model gives if it ends at a residual [..., C]: final norm and head."""
        return linear(last(norm(residual, "final_norm", self.weights, self.config)), "head", self.weights)

    def block_weights(self, layer: int) -> dict[str, Floats]:
        """Return the weights of one block by their names inside the block."""
        prefix = f"blocks.{layer}."
        return {name.removeprefix(prefix): one for name, one in self.weights.items() if name.startswith(prefix)}


def load_numpy_model(config: GPTConfig, tensors: Mapping[str, npt.NDArray[Any]]) -> NumpyModel:
    """Read all weights into memory once.

    Args:
        config: the model's shape.
        tensors: by canonical name, such as `Source.lazy` returns.
    """
    tied = {"head.weight": "token_embedding.weight"} if config.tie_weights else {}
    weights: dict[str, Floats] = {}
    with ByteProgress("Loading the weights", 4 * count_parameters(config).total) as progress:
        for name in tensors:
            if name not in tied:
                weights[name] = tensors[name].astype(np.float32, copy=False)
                progress.advance(weights[name].nbytes)
    return NumpyModel(config, {**weights, **{name: weights[other] for name, other in tied.items()}})


def block(x: Floats, weights: Weights, config: GPTConfig) -> NamedValues:
    """Run a block on a residual stream [..., T, C]: attention, then feed-forward, each added to the stream."""
    yield "residual_in", x
    for name, normed in norm(x, "norm_1", weights, config):
        yield name, normed
    for name, output in attention(normed, weights, config):
        yield name, output
    x = x + output
    yield "residual_mid", x
    for name, normed in norm(x, "norm_2", weights, config):
        yield name, normed
    for name, output in feed_forward(normed, weights, config):
        yield name, output
    yield "residual_out", x + output


def norm(x: Floats, prefix: str, weights: Weights, config: GPTConfig) -> NamedValues:
    """Normalize each vector to mean 0 and variance 1, then scale and shift each component."""
    mean = x.mean(-1)  # [..., T]
    yield f"{prefix}.mean", mean
    variance = x.var(-1)  # [..., T]: the biased variance
    yield f"{prefix}.variance", variance
    normed = (x - mean[..., None]) / np.sqrt(variance[..., None] + np.float32(config.norm_eps))  # [..., T, C]
    yield f"{prefix}.output", normed * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]


def attention(x: Floats, weights: Weights, config: GPTConfig) -> NamedValues:
    """Let each token collect the values of those before it: scores, mask, softmax, weights times values."""
    *batch, T, C = x.shape  # noqa: N806
    H, D = config.n_heads, config.head_dim  # noqa: N806
    qkv = linear(x, "attention.qkv", weights).reshape(*batch, T, 3, H, D)
    queries, keys, values = np.moveaxis(qkv, -3, 0).swapaxes(-3, -2)  # [3, ..., T, H, D] -> [3, ..., H, T, D]
    yield "attention.queries", queries
    yield "attention.keys", keys
    yield "attention.values", values
    scores = queries @ keys.swapaxes(-2, -1) / np.float32(math.sqrt(D))  # [..., H, T, T]: row = query, column = key
    yield "attention.scores", scores
    future = np.triu(np.ones((T, T), bool), 1)
    pattern = softmax(np.where(future, np.float32(-np.inf), scores))  # [..., H, T, T]: each row sums to 1
    yield "attention.pattern", pattern
    mixed = pattern @ values  # [..., H, T, D]
    yield "attention.mixed", mixed
    joined = mixed.swapaxes(-3, -2).reshape(*batch, T, C)  # the heads side by side
    yield "attention.output", linear(joined, "attention.out", weights)


def feed_forward(x: Floats, weights: Weights, config: GPTConfig) -> NamedValues:
    """Expand each vector, apply the activation function, and project it back."""
    up = linear(x, "feed_forward.up", weights)  # [..., T, ff_dim]
    yield "feed_forward.up", up
    activated = _ACTIVATION_FUNCTIONS[config.activation](up)
    yield "feed_forward.activated", activated
    yield "feed_forward.output", linear(activated, "feed_forward.down", weights)  # [..., T, C]


def linear(x: Floats, name: str, weights: Weights) -> Floats:
    """Return x W^T + b, [..., in] -> [..., out]; some layers have no bias."""
    product: Floats = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def softmax(scores: Floats) -> Floats:
    """Return exp of the scores over the sum of each row."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    shares: Floats = powers / powers.sum(-1, keepdims=True)
    return shares


def _gelu_tanh(x: Floats) -> Floats:
    inner = np.float32(math.sqrt(2 / math.pi)) * x * (1 + np.float32(0.044715) * x * x)
    activated: Floats = np.float32(0.5) * x * (1 + np.tanh(inner))
    return activated


def _gelu_erf(x: Floats) -> Floats:
    erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2))), np.float32)  # NumPy has none
    activated: Floats = np.float32(0.5) * x * (1 + erf)
    return activated


def _relu(x: Floats) -> Floats:
    positive: Floats = np.maximum(x, np.float32(0))
    return positive


_ACTIVATION_FUNCTIONS = {"gelu_tanh": _gelu_tanh, "gelu_erf": _gelu_erf, "relu": _relu}


def last(values: NamedValues) -> Floats:
    """Run a part of the network to its end and return its result."""
    for _, result in values:  # noqa: B007 - the last one is returned
        pass
    return result
