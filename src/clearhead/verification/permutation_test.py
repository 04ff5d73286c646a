"""A permutation test of a model: its log-likelihood of a text, as it is and with parts exchanged or transposed.

A part that was loaded transposed or into the wrong tensor leaves a model that still runs and writes, only worse. If an
alternative with permuted parts makes ordinary text more likely, it undoes a mistake; if none does, none of these
mistakes was made. The difference of the two log-likelihoods in nats is the log of the likelihood ratio, by which two
hypotheses are compared (Neyman and Pearson 1933).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clearhead.config import GPTConfig
from clearhead.verification.blockwise import Array, BlockwiseNetwork

BlockParameters = Mapping[str, Array]
"""A block's parameters by their names inside the block."""

Permute = Callable[[BlockParameters, GPTConfig], BlockParameters]
"""Returns the parameters of a block that it changes."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A model with permuted parts.

    Attributes:
        name: what was permuted.
        layers: in which layers; empty for the whole model.
        nats: by how much it makes the text less likely than the model as it is; negative if more likely.
        sigmas: the mean difference per token over its standard error.
    """

    name: str
    layers: tuple[int, ...]
    nats: float
    sigmas: float

    @property
    def where(self) -> str:
        """The layers in words."""
        return "layers " + " and ".join(map(str, self.layers)) if self.layers[1:] else f"layer {self.layers[0]}"

    def __str__(self) -> str:
        """Return what was permuted, and where."""
        return f"{self.name} in {self.where}" if self.layers else f"{self.name} in the whole model"


@dataclass(frozen=True)
class PermutationTest:
    """The likelihood of a text under a model and under its alternatives.

    Attributes:
        tokens: the number of predicted tokens.
        loss: the mean cross-entropy per token of the model as it is, in nats.
        chance: the same if all tokens that a text can consist of are equally likely.
        alternatives: all that were tried.
    """

    tokens: int
    loss: float
    chance: float
    alternatives: tuple[Alternative, ...]


# --------------------------------------------------------------------------------------------------------------
# The permutations
# --------------------------------------------------------------------------------------------------------------


def _qkv(change: Callable[[Array], Array], *, biases: bool = True) -> Permute:
    def changed(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
        names = [name for name in parameters if name.startswith("attention.qkv")]
        return {name: change(parameters[name]) for name in names if biases or name.endswith("weight")}

    return changed


def _ordered(*order: int) -> Permute:
    """Take q, k and v from these thirds."""
    return _qkv(lambda stacked: stacked.reshape(3, -1, *stacked.shape[1:])[list(order)].reshape(stacked.shape))


def _transposed(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
    def each_third(stacked: Array) -> Array:
        return stacked.reshape(3, config.emb_dim, config.emb_dim).swapaxes(1, 2).reshape(stacked.shape)

    return _qkv(each_third, biases=False)(parameters, config)


def _deinterleaved(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
    """Read q, k and v as stored head by head, [H, 3, D]."""
    shape = (config.n_heads, 3, config.head_dim, -1)
    return _qkv(lambda stacked: stacked.reshape(shape).swapaxes(0, 1).reshape(stacked.shape))(parameters, config)


def _interleaved(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
    shape = (3, config.n_heads, config.head_dim, -1)
    return _qkv(lambda stacked: stacked.reshape(shape).swapaxes(0, 1).reshape(stacked.shape))(parameters, config)


def _out_transposed(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
    return {"attention.out.weight": parameters["attention.out.weight"].T}


def _norms_exchanged(parameters: BlockParameters, config: GPTConfig) -> BlockParameters:
    other = {"norm_1": "norm_2", "norm_2": "norm_1"}
    return {f"{norm}.{field}": parameters[f"{other[norm]}.{field}"] for norm in other for field in ("weight", "bias")}


_IN_ONE_LAYER: dict[str, Permute] = {
    "q and k exchanged": _ordered(1, 0, 2),
    "attention.out transposed": _out_transposed,
    "norm_1 and norm_2 exchanged": _norms_exchanged,
}
_IN_ALL_LAYERS: dict[str, Permute] = {
    **_IN_ONE_LAYER,
    "q, k, v read as q, v, k": _ordered(0, 2, 1),
    "q, k, v read as v, k, q": _ordered(2, 1, 0),
    "q, k, v read as k, v, q": _ordered(2, 0, 1),
    "q, k, v read as v, q, k": _ordered(1, 2, 0),
    "q, k and v transposed": _transposed,
    "q, k and v read as interleaved head by head": _deinterleaved,
    "q, k and v interleaved head by head": _interleaved,
}


def _layer_orders(n_layers: int) -> dict[str, list[int]]:
    """Return other orders in which the layers may have been stored."""
    numbers = list(range(n_layers))
    found = {"the layers from last to first": numbers[::-1]} if n_layers > 1 else {}
    if n_layers > 10:
        by_text = sorted(numbers, key=str)  # 0, 1, 10, 11, 2, …: the order of a sorted list of names
        found["the layers read as sorted by name (0, 1, 10, …)"] = [by_text.index(number) for number in numbers]
        found["the layers sorted by name (0, 1, 10, …)"] = by_text
    return found


def _other_head_counts(config: GPTConfig) -> list[int]:
    near = (config.n_heads * 2, config.n_heads * 4, config.n_heads // 2, config.n_heads // 4)
    return [heads for heads in near if heads > 0 and config.emb_dim % heads == 0 and config.emb_dim // heads >= 8]


# --------------------------------------------------------------------------------------------------------------
# The test
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BlockRun:
    """One block in a pass: which one runs, with which parameters changed, and with how many heads."""

    layer: int
    permute: Permute | None = None
    n_heads: int | None = None


class _TextRun:
    """One network on one text: the log-probability of each token, as the network is and with changed blocks."""

    def __init__(self, network: BlockwiseNetwork, ids: Sequence[int]) -> None:
        self.network = network
        length = min(network.config.context_length, len(ids) - 1)
        starts = range(0, len(ids) - length, length)
        windows = np.array([list(ids[start : start + length + 1]) for start in starts])  # [B, T + 1]
        self.targets = windows[:, 1:]
        x = network.embed(windows[:, :-1])  # [B, T, C]
        self.block_inputs = [x]
        for layer in range(network.config.n_layers):
            x = self._run(_BlockRun(layer), x)
            self.block_inputs.append(x)
        self.unchanged = network.logprobs(x, self.targets)  # [B * T]

    def _run(self, block: _BlockRun, x: Array) -> Array:
        config = self.network.config
        changed = block.permute(self.network.block_parameters(block.layer), config) if block.permute else {}
        return self.network.run_block(block.layer, x, changed, block.n_heads or config.n_heads)

    def alternative(self, name: str, layers: tuple[int, ...], blocks: Sequence[_BlockRun]) -> Alternative:
        """Run these blocks in place of those from the first of `layers` on, and compare with the unchanged network."""
        x = self.block_inputs[layers[0] if layers else 0]
        for block in blocks:
            x = self._run(block, x)
        difference = self.unchanged - self.network.logprobs(x, self.targets)
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        mean = float(difference.mean())
        return Alternative(name, layers, mean * len(difference), mean / error if error else 0.0)


def count_alternatives(config: GPTConfig, layer_by_layer: bool) -> int:
    """Return how many alternatives `permutation_test` tries."""
    layers = config.n_layers * (len(_IN_ONE_LAYER) + 1) - 1 if layer_by_layer and config.n_layers > 1 else 0
    return len(_IN_ALL_LAYERS) + len(_layer_orders(config.n_layers)) + len(_other_head_counts(config)) + layers


def permutation_test(
    network: BlockwiseNetwork,
    ids: Sequence[int],
    *,
    n_choices: int | None = None,
    layer_by_layer: bool = True,
    advance: Callable[[int], None] = lambda alternatives: None,
) -> PermutationTest:
    """Compare a network with all of its alternatives on one text.

    Args:
        network: in NumPy or PyTorch; it is not changed.
        ids: the text's tokens, read in windows of the context length. Every token but the text's first is predicted
            from those before it in its window; a partial window at the end is left out.
        n_choices: how many different tokens a text can consist of, from which `chance` is computed; None for the whole
            vocabulary.
        layer_by_layer: whether to permute parts of single layers too, which costs (4 n_layers - 1) half passes more.
        advance: is called with 1 after each alternative.
    """
    config, run = network.config, _TextRun(network, ids)
    alternatives: list[Alternative] = []

    def add(name: str, layers: tuple[int, ...], blocks: Sequence[_BlockRun]) -> None:
        alternatives.append(run.alternative(name, layers, blocks))
        advance(1)

    blocks = [_BlockRun(layer) for layer in range(config.n_layers)]
    for name, permute in _IN_ALL_LAYERS.items():
        add(name, (), [_BlockRun(block.layer, permute) for block in blocks])
    for name, order in _layer_orders(config.n_layers).items():
        add(name, (), [blocks[number] for number in order])
    for heads in _other_head_counts(config):
        add(f"{heads} heads", (), [_BlockRun(block.layer, n_heads=heads) for block in blocks])
    if layer_by_layer and config.n_layers > 1:
        for layer, block in enumerate(blocks):
            for name, permute in _IN_ONE_LAYER.items():
                add(name, (layer,), [_BlockRun(layer, permute), *blocks[layer + 1 :]])
            if layer + 1 < config.n_layers:
                swapped = [blocks[layer + 1], block, *blocks[layer + 2 :]]
                add("the blocks exchanged", (layer, layer + 1), swapped)
    loss = -float(run.unchanged.mean())
    chance = math.log(config.vocab_size if n_choices is None else n_choices)
    return PermutationTest(run.targets.size, loss, chance, tuple(alternatives))
