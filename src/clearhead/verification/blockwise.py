"""A network block by block, with other parameters where wanted: what the permutation test needs of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.numpy_model import NumpyModel, block, last

if TYPE_CHECKING:
    from clearhead.model import GPTModel

Array = Any
"""A NumPy array or a tensor; the test uses what both have in common: indices, `reshape`, `swapaxes` and `T`."""

Ids = npt.NDArray[np.int64]


class BlockwiseNetwork(Protocol):
    """A network that runs one block at a time."""

    config: GPTConfig

    def embed(self, ids: Ids) -> Array:
        """Return the input of the first block, [B, T, C], for token ids [B, T]."""

    def block_parameters(self, layer: int) -> Mapping[str, Array]:
        """Return a block's parameters by their names inside the block."""

    def run_block(self, layer: int, x: Array, changed: Mapping[str, Array], n_heads: int) -> Array:
        """Run a block on [B, T, C], with some parameters or the number of heads changed."""

    def logprobs(self, x: Array, targets: Ids) -> npt.NDArray[np.float64]:
        """Return the log-probabilities of the targets [B, T] after the last block's output, float64 [B * T]."""


class NumpyBlocks:
    """The blocks of a network in NumPy."""

    def __init__(self, model: NumpyModel) -> None:
        self.model, self.config = model, model.config

    def embed(self, ids: Ids) -> Array:
        """Return the input of the first block."""
        weights = self.model.weights
        return weights["token_embedding.weight"][ids] + weights["position_embedding.weight"][: ids.shape[1]]

    def block_parameters(self, layer: int) -> Mapping[str, Array]:
        """Return a block's parameters."""
        return self.model.block_weights(layer)

    def run_block(self, layer: int, x: Array, changed: Mapping[str, Array], n_heads: int) -> Array:
        """Run a block."""
        with np.errstate(all="ignore"):  # a wrong permutation may overflow
            return last(block(x, {**self.block_parameters(layer), **changed}, self.config.replace(n_heads=n_heads)))

    def logprobs(self, x: Array, targets: Ids) -> npt.NDArray[np.float64]:
        """Return the log-probabilities of the targets."""
        found = []
        with np.errstate(all="ignore"):
            for window, wanted in zip(x, targets, strict=True):  # one at a time: the logits are the largest array
                logits = self.model.read_residual(window)  # [T, V]
                highest = logits.max(-1)
                totals = np.exp(logits - highest[:, None]).sum(-1, dtype=np.float64)
                found.append(np.take_along_axis(logits, wanted[:, None], 1)[:, 0] - highest - np.log(totals))
        return np.concatenate(found)


class TorchBlocks:
    """The blocks of a PyTorch network, on its device.

    Args:
        model: in evaluation mode; it is not changed.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model, self.config = model, model.config

    def embed(self, ids: Ids) -> Array:
        """Return the input of the first block."""
        import torch

        with torch.inference_mode():
            device = self.model.token_embedding.weight.device
            positions = torch.arange(ids.shape[1], device=device)
            tokens = self.model.token_embedding(torch.from_numpy(ids).to(device))
            return tokens + self.model.position_embedding(positions)

    def block_parameters(self, layer: int) -> Mapping[str, Array]:
        """Return a block's parameters."""
        return dict(self.model.blocks[layer].named_parameters())

    def run_block(self, layer: int, x: Array, changed: Mapping[str, Array], n_heads: int) -> Array:
        """Run a block."""
        import torch
        from torch.func import functional_call

        attention: Any = self.model.blocks[layer].attention
        own = attention.n_heads
        try:
            attention.n_heads = n_heads
            with torch.inference_mode():
                return functional_call(self.model.blocks[layer], {**self.block_parameters(layer), **changed}, (x,))
        finally:
            attention.n_heads = own

    def logprobs(self, x: Array, targets: Ids) -> npt.NDArray[np.float64]:
        """Return the log-probabilities of the targets."""
        import torch

        found = []
        with torch.inference_mode():
            for window, wanted in zip(x, torch.from_numpy(targets).to(x.device), strict=True):  # as in NumPyBlocks
                logits = self.model.head(self.model.final_norm(window)).float()  # [T, V]
                found.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=-1))
            logprobs: npt.NDArray[np.float64] = torch.cat(found).double().cpu().numpy()
        return logprobs
