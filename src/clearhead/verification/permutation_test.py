"""How much likelier a model holds a text than the same model would with a part of it rearranged.

A part that was loaded transposed or in the wrong place leaves a model that runs and writes, only worse. So a
rearrangement that makes ordinary text likelier undoes a mistake; and where none does, none of these mistakes was
made. The difference of the two log-probabilities, in nats, is the logarithm of how many times likelier the text
is: the likelihood ratio, by which two hypotheses are weighed (Neyman and Pearson 1933).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clearhead.config import GPTConfig
from clearhead.model import Block, GPTModel

Parts = dict[str, Tensor]
"""A block's parameters, by their names in it."""

Change = Callable[[Parts, GPTConfig], Parts]
"""Gives the parameters of a block that it changes."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A rearranged model.

    Attributes:
        name: what was rearranged.
        layers: where; empty for the whole model.
        nats: by how much it holds the text less likely than the model as it is; below 0, more likely.
        deviations: the mean difference of a token over its standard error.
    """

    name: str
    layers: tuple[int, ...]
    nats: float
    deviations: float

    @property
    def where(self) -> str:
        """The layers in words."""
        return "layers " + " and ".join(map(str, self.layers)) if self.layers[1:] else f"layer {self.layers[0]}"

    def __str__(self) -> str:
        """What was rearranged, and where."""
        return f"{self.name} in {self.where}" if self.layers else f"{self.name} in the whole model"


@dataclass(frozen=True)
class Comparison:
    """What a model and its rivals made of a text.

    Attributes:
        tokens: how many were predicted.
        loss: the mean -log p of a token as the model is, in nats.
        chance: the same where all tokens of the vocabulary are equally likely.
        rivals: all that were tried.
    """

    tokens: int
    loss: float
    chance: float
    rivals: tuple[Rival, ...]


# --------------------------------------------------------------------------------------------------------------
# What is rearranged
# --------------------------------------------------------------------------------------------------------------


def _qkv(change: Callable[[Tensor], Tensor], *, biases: bool = True) -> Change:
    def changed(parts: Parts, config: GPTConfig) -> Parts:
        names = [name for name in parts if name.startswith("attention.qkv") and (biases or name.endswith("weight"))]
        return {name: change(parts[name]) for name in names}

    return changed


def _ordered(*order: int) -> Change:
    """q, k and v are what stands in these thirds."""
    return _qkv(lambda stacked: torch.cat([stacked.chunk(3)[third] for third in order]))


def _turned(parts: Parts, config: GPTConfig) -> Parts:
    return _qkv(lambda stacked: torch.cat([part.T for part in stacked.chunk(3)]), biases=False)(parts, config)


def _unwoven(parts: Parts, config: GPTConfig) -> Parts:
    """Stored head by head, as [H, 3, D]."""
    shape = (config.n_heads, 3, config.head_dim, -1)
    return _qkv(lambda stacked: stacked.reshape(shape).transpose(0, 1).reshape(stacked.shape))(parts, config)


def _woven(parts: Parts, config: GPTConfig) -> Parts:
    shape = (3, config.n_heads, config.head_dim, -1)
    return _qkv(lambda stacked: stacked.reshape(shape).transpose(0, 1).reshape(stacked.shape))(parts, config)


def _out_turned(parts: Parts, config: GPTConfig) -> Parts:
    return {"attention.out.weight": parts["attention.out.weight"].T}


def _norms_exchanged(parts: Parts, config: GPTConfig) -> Parts:
    other = {"norm_1": "norm_2", "norm_2": "norm_1"}
    return {f"{norm}.{field}": parts[f"{other[norm]}.{field}"] for norm in other for field in ("weight", "bias")}


_IN_ONE_LAYER: dict[str, Change] = {
    "q and k exchanged": _ordered(1, 0, 2),
    "attention.out transposed": _out_turned,
    "norm_1 and norm_2 exchanged": _norms_exchanged,
}
_IN_ALL_LAYERS: dict[str, Change] = {
    **_IN_ONE_LAYER,
    "q, k, v read as q, v, k": _ordered(0, 2, 1),
    "q, k, v read as v, k, q": _ordered(2, 1, 0),
    "q, k, v read as k, v, q": _ordered(2, 0, 1),
    "q, k, v read as v, q, k": _ordered(1, 2, 0),
    "q, k and v transposed": _turned,
    "q, k and v read as woven together head by head": _unwoven,
    "q, k and v woven together head by head": _woven,
}


def _orders(n_layers: int) -> dict[str, list[int]]:
    """Other orders in which the layers may have been meant."""
    numbers = list(range(n_layers))
    found = {"the layers from last to first": numbers[::-1]} if n_layers > 1 else {}
    if n_layers > 10:
        by_text = sorted(numbers, key=str)  # 0, 1, 10, 11, 2, …: as a sorted list of names has them
        found["the layers read as sorted by name (0, 1, 10, …)"] = [by_text.index(number) for number in numbers]
        found["the layers sorted by name (0, 1, 10, …)"] = by_text
    return found


# --------------------------------------------------------------------------------------------------------------
# The comparison
# --------------------------------------------------------------------------------------------------------------


class _Trial:
    """One model and one text: the log-probability of each token, as it is and with blocks changed."""

    def __init__(self, model: GPTModel, ids: Sequence[int]) -> None:
        self.model = model
        device = model.token_embedding.weight.device
        length = min(model.config.context_length, len(ids) - 1)
        starts = range(0, len(ids) - length, length)
        windows = torch.tensor([list(ids[start : start + length + 1]) for start in starts], device=device)  # [B, T + 1]
        self.inputs, self.targets = windows[:, :-1], windows[:, 1:]
        positions = torch.arange(length, device=device)
        x = model.token_embedding(self.inputs) + model.position_embedding(positions)  # [B, T, C]
        self.before = [x]  # what goes into each block
        for block in model.blocks:
            x = block(x)
            self.before.append(x)
        self.as_it_is = self.end(x)  # [B * T]

    def end(self, x: Tensor) -> Tensor:
        """The log-probabilities of the targets, float64 [B * T], from what the last block gave."""
        found = []
        for window, targets in zip(x, self.targets, strict=True):  # one at a time: the logits are the largest tensor
            logits = self.model.head(self.model.final_norm(window)).float()  # [T, V]
            found.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1))
        return torch.cat(found).double()

    def through(self, blocks: Sequence[Callable[[Tensor], Tensor]], first: int) -> Tensor:
        """The log-probabilities where these blocks run from `first` on."""
        x = self.before[first]
        for block in blocks:
            x = block(x)
        return self.end(x)

    def rival(self, name: str, layers: tuple[int, ...], logprobs: Tensor) -> Rival:
        difference = self.as_it_is - logprobs
        error = float(difference.std()) / math.sqrt(len(difference))
        mean = float(difference.mean())
        return Rival(name, layers, mean * len(difference), mean / error if error else 0.0)


def _changed(block: nn.Module, change: Change, config: GPTConfig) -> Callable[[Tensor], Tensor]:
    parts: Parts = {name: parameter for name, parameter in block.named_parameters()}  # noqa: C416
    return lambda x: functional_call(block, {**parts, **change(parts, config)}, (x,))


@contextmanager
def _with_heads(blocks: Sequence[Block], heads: int) -> Iterator[None]:
    before = [block.attention.n_heads for block in blocks]
    try:
        for block in blocks:
            block.attention.n_heads = heads
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.attention.n_heads = own


def n_rivals(config: GPTConfig, layer_by_layer: bool) -> int:
    """How many rivals `compare` tries."""
    layers = config.n_layers * (len(_IN_ONE_LAYER) + 1) - 1 if layer_by_layer and config.n_layers > 1 else 0
    return len(_IN_ALL_LAYERS) + len(_orders(config.n_layers)) + len(_other_heads(config)) + layers


def _other_heads(config: GPTConfig) -> list[int]:
    """Other numbers of heads that this width may be cut into."""
    near = (config.n_heads * 2, config.n_heads * 4, config.n_heads // 2, config.n_heads // 4)
    return [heads for heads in near if heads > 0 and config.emb_dim % heads == 0 and config.emb_dim // heads >= 8]


@torch.inference_mode()
def compare(
    model: GPTModel,
    ids: Sequence[int],
    *,
    layer_by_layer: bool = True,
    advance: Callable[[int], None] = lambda rivals: None,
) -> Comparison:
    """Holds a model against all of its rivals.

    Args:
        model: in evaluation mode; it is not changed.
        ids: the text; it is read in windows of the context's length, each token of which but the text's first is
            predicted from those before it in its window. What does not fill a window at the end is left out.
        layer_by_layer: whether parts of single layers are rearranged too: (4 n_layers - 1) half passes more.
        advance: is told after each rival.
    """
    config, trial = model.config, _Trial(model, ids)
    rivals: list[Rival] = []

    def add(name: str, layers: tuple[int, ...], blocks: Sequence[Callable[[Tensor], Tensor]]) -> None:
        rivals.append(trial.rival(name, layers, trial.through(blocks, layers[0] if layers else 0)))
        advance(1)

    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    for name, change in _IN_ALL_LAYERS.items():
        add(name, (), [_changed(block, change, config) for block in blocks])
    for name, order in _orders(config.n_layers).items():
        add(name, (), [blocks[number] for number in order])
    for heads in _other_heads(config):
        with _with_heads(blocks, heads):
            add(f"{heads} heads", (), blocks)
    if layer_by_layer and config.n_layers > 1:
        for layer, block in enumerate(blocks):
            for name, change in _IN_ONE_LAYER.items():
                add(name, (layer,), [_changed(block, change, config), *blocks[layer + 1 :]])
            if layer + 1 < config.n_layers:
                swapped = [blocks[layer + 1], block, *blocks[layer + 2 :]]
                add("the blocks exchanged", (layer, layer + 1), swapped)
    loss = -float(trial.as_it_is.mean())
    return Comparison(trial.targets.numel(), loss, math.log(config.vocab_size), tuple(rivals))
