"""Random tensors in the shapes of a config, for measuring speed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from clearhead.config import GPTConfig
from clearhead.weights.layouts import TABLE, axis_sizes, layout_tensors

_SPREAD = 0.02  # the standard deviation of GPT-2's initial weights


class RandomTensors(Mapping[str, np.ndarray]):
    """Every tensor of an untrained model by canonical name, made when it is asked for.

    Matrices and embeddings are drawn from a normal distribution with standard deviation 0.02; the weights of norms are
    one and biases zero. The speed of a model does not depend on its numbers.

    Args:
        config: the model's shape.
        seed: the same seed gives the same numbers, whatever the order in which tensors are read.
    """

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        sizes, has = axis_sizes(config), {"": True, "qkv_bias": config.qkv_bias, "head": not config.tie_weights}
        self._seed = seed
        self._shapes = {
            piece.name: piece.shape(sizes)
            for row in TABLE
            if has[row.needs]
            for piece in layout_tensors(row, "canonical", config.n_layers)
        }

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the tensor as float32."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return (np.ones if "norm" in name and name.endswith("weight") else np.zeros)(shape, np.float32)
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(_SPREAD)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without making it."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
