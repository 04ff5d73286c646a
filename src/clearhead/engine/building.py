"""A model's weights in the engine's arrays: which arrays there are, and how they are filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.engine.arrays import Matrix, Norm, Weights, aligned_zeros
from clearhead.engine.dtypes import storage
from clearhead.engine.panels import padded_rows
from clearhead.engine.variants import VARIANT

Arrays = dict[str, npt.NDArray[Any]]

_BLOCK_MATRICES = {
    "qkv": "attention.qkv",
    "out": "attention.out",
    "up": "feed_forward.up",
    "down": "feed_forward.down",
}
"""The engine's name of each matrix of a block, and its canonical name there."""


def matrices(config: GPTConfig) -> list[tuple[str, int]]:
    """Return the canonical name and the columns of every matrix of a pass, in the order in which a token meets them."""
    found = []
    for layer in range(config.n_layers):
        for name, canonical in _BLOCK_MATRICES.items():
            columns = config.ff_dim if name == "down" else config.emb_dim
            found.append((f"blocks.{layer}.{canonical}.weight", columns))
    head = "token_embedding" if config.tie_weights else "head"
    return [*found, (f"{head}.weight", config.emb_dim)]


def layout(
    config: GPTConfig, dtype: str, activations: str = VARIANT.activations
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the type and shape of every array of a model in a dtype, by name; layers are the first axis."""
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    float32 = np.dtype(np.float32)

    def matrix(name: str, layers: int, rows: int, columns: int) -> None:
        for part, (kind, size) in storage(dtype, activations, rows, columns).items():
            found[f"{name}.{part}"] = (kind, (layers, size))
        found[f"{name}.bias"] = (float32, (layers, padded_rows(rows)))

    def norm(name: str, layers: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (float32, (layers, config.emb_dim))

    layers, width, ff_width = config.n_layers, config.emb_dim, config.ff_dim
    matrix("tokens", 1, config.vocab_size, width)
    found["positions"] = (float32, (config.context_length, width))
    norm("norm_1", layers)
    matrix("qkv", layers, 3 * width, width)
    matrix("out", layers, width, width)
    norm("norm_2", layers)
    matrix("up", layers, ff_width, width)
    matrix("down", layers, width, ff_width)
    norm("final_norm", 1)
    if not config.tie_weights:
        matrix("head", 1, config.vocab_size, width)
    return found


def size(config: GPTConfig, dtype: str) -> int:
    """Return the bytes of a model's weights in a dtype."""
    arrays = layout(config, dtype, VARIANT.activations).values()
    return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in arrays)


def build(
    config: GPTConfig,
    tensors: Mapping[str, npt.NDArray[Any]],
    dtype: str,
    threads: int,
    activations: str = VARIANT.activations,
    moments: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Arrays:
    """Fill the arrays of a dtype.

    Args:
        config: the model's shape.
        tensors: by canonical name; float32, in any order. Each is asked for once, so they may be read as needed.
        dtype: one of `dtypes.DTYPES`.
        threads: how many share the work.
        activations: one of `dtypes.ACTIVATIONS`, which int8 and int4 weights will be multiplied by.
        moments: for int4, what `calibration.calibrate` found; rounding is better with them.

    Raises:
        InputError: if the dtype cannot store a tensor's numbers.
    """
    from clearhead.engine.packing import pack

    arrays = {name: aligned_zeros(shape, kind) for name, (kind, shape) in layout(config, dtype, activations).items()}

    def matrix(name: str, layer: int, canonical: str) -> None:
        weights = np.asarray(tensors[f"{canonical}.weight"], np.float32)
        used = None if moments is None else moments.get(f"{canonical}.weight")
        pack(dtype, weights, arrays[f"{name}.weights"][layer], arrays[f"{name}.scales"][layer], threads, used)
        if (bias := f"{canonical}.bias") in tensors:
            arrays[f"{name}.bias"][layer, : len(weights)] = tensors[bias]

    matrix("tokens", 0, "token_embedding")
    arrays["positions"][:] = tensors["position_embedding.weight"]
    for layer in range(config.n_layers):
        for name in ("norm_1", "norm_2"):
            arrays[f"{name}.weight"][layer] = tensors[f"blocks.{layer}.{name}.weight"]
            arrays[f"{name}.bias"][layer] = tensors[f"blocks.{layer}.{name}.bias"]
        for name, canonical in _BLOCK_MATRICES.items():
            matrix(name, layer, f"blocks.{layer}.{canonical}")
    arrays["final_norm.weight"][0] = tensors["final_norm.weight"]
    arrays["final_norm.bias"][0] = tensors["final_norm.bias"]
    if not config.tie_weights:
        matrix("head", 0, "head")
    return arrays


def weights_of(arrays: Arrays) -> Weights:
    """Return the arrays as the kernels take them; without a head of its own the token embedding is the head."""

    def matrix(name: str) -> Matrix:
        return Matrix(arrays[f"{name}.weights"], arrays[f"{name}.scales"], arrays[f"{name}.bias"])

    def norm(name: str) -> Norm:
        return Norm(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    return Weights(
        tokens=matrix("tokens"),
        positions=arrays["positions"],
        norm_1=norm("norm_1"),
        qkv=matrix("qkv"),
        out=matrix("out"),
        norm_2=norm("norm_2"),
        up=matrix("up"),
        down=matrix("down"),
        final_norm=norm("final_norm"),
        head=matrix("head" if "head.weights" in arrays else "tokens"),
    )
