"""Patch activations of one text into another, everywhere in one sweep: which of them carry the difference?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.activations import Activation, names
from clearhead.lens.attribution import last_logits_from
from clearhead.lens.cache import padded, run_with_cache
from clearhead.lens.hooks import installed
from clearhead.lens.labelled import LabelledArray, numbered, token_labels
from clearhead.model import GPTModel

LogitMetric = Callable[[Tensor], Tensor]
"""From the logits after the last token, [N, V], to one number for each row, [N]."""

_MOST_ROWS = 64
"""Patched copies that run together at most; more would take memory and save no time."""


def logit_difference(right: int, wrong: int) -> LogitMetric:
    """Return the metric "logit of `right` minus logit of `wrong`".

    It raises InputError if one of the two ids is not in the vocabulary.
    """

    def difference(logits: Tensor) -> Tensor:
        check_token_ids([right, wrong], logits.shape[-1])
        return logits[:, right] - logits[:, wrong]

    return difference


@dataclass(frozen=True)
class Patching:
    """The results of a sweep.

    Attributes:
        values: the metric after each patch.
        clean, corrupted: the metric of the two texts themselves.
    """

    values: LabelledArray
    clean: float
    corrupted: float

    def recovered(self) -> LabelledArray:
        """Return how much of the difference each patch restores: 0 is the corrupted text, 1 the clean one.

        Raises:
            InputError: if the two texts have the same metric, so that there is nothing to restore.
        """
        if self.clean == self.corrupted:
            raise InputError("the metric is the same for both texts, so a patch has nothing to restore; take others.")
        share = (self.values.values - self.corrupted) / (self.clean - self.corrupted)
        return LabelledArray(share, self.values.axes, self.values.labels, "share of the difference restored")

    def _repr_html_(self) -> str:
        return self.recovered()._repr_html_()


@torch.no_grad()
def patch(
    model: GPTModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    where: str,
    metric: LogitMetric,
    *,
    heads: bool = False,
    positions: bool = True,
    tokens: Sequence[str] | None = None,
) -> Patching:
    """Run the corrupted text many times, each time with one activation taken from the clean text.

    Each run starts at the patched block from the corrupted text's residual stream, so the blocks below are not run
    again.

    Args:
        model: the model.
        clean: the text that gives activations.
        corrupted: the text that gets them, as long as the clean one.
        where: the activation, with a wildcard for the block, such as "blocks.*.residual_in" or
            "blocks.*.attention.mixed".
        metric: what to measure, from the logits after the last token.
        heads: patch each head on its own; for activations that have heads.
        positions: patch each position on its own; otherwise all positions together.
        tokens: the text of each of the corrupted text's ids, for labels.

    Returns:
        the metric by layer, then head, then position, as far as these are asked for.

    Raises:
        InputError: if the texts differ in length, the name means no activation inside the blocks, or it has no heads.
    """
    _check_lengths(clean, corrupted)
    chosen = _in_blocks(model, where)
    _check_heads(chosen, heads)
    n_heads = model.config.n_heads if heads else 1
    n_positions = len(clean) if positions else 1
    wanted = [one.name for _, one in chosen]
    starts = [f"blocks.{layer}.residual_in" for layer, _ in chosen]
    given = run_with_cache(model, [clean], [*wanted, starts[0]])
    taken = run_with_cache(model, [corrupted], [*wanted, *starts])
    values = np.empty((len(chosen), n_heads, n_positions))
    for row, (layer, activation) in enumerate(chosen):
        start = taken[f"blocks.{layer}.residual_in"]  # [1, T, C]
        patches = _Patches(activation, given[activation.name][0], heads, positions)
        values[row].flat = _run_patches(model, start, layer, patches, metric, (n_heads, n_positions))
    first = chosen[0][0]
    ends = [given[starts[0]], taken[starts[0]]]
    both = [float(metric(last_logits_from(model, end, first).float())[0]) for end in ends]
    cells = _PatchAxes([layer for layer, _ in chosen], heads, positions, n_heads, token_labels(corrupted, tokens))
    return Patching(cells.labelled(values, f"patched {where}"), *both)


@dataclass(frozen=True)
class _PatchAxes:
    """What a sweep iterates over; it labels the results."""

    layers: Sequence[int]
    heads: bool
    positions: bool
    n_heads: int
    tokens: tuple[str, ...]

    def labelled(self, values: npt.NDArray[np.float64], title: str) -> LabelledArray:
        axes = {"layer": tuple(f"layer {layer}" for layer in self.layers)}
        if self.heads:
            axes["head"] = tuple(f"head {head}" for head in numbered(self.n_heads))
        if self.positions:
            axes["position"] = self.tokens
        shape = [len(labels) for labels in axes.values()]
        return LabelledArray(values.reshape(shape), tuple(axes), tuple(axes.values()), title)


def attribution_patch(
    model: GPTModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    where: str,
    metric: LogitMetric,
    *,
    heads: bool = False,
    positions: bool = True,
    tokens: Sequence[str] | None = None,
) -> Patching:
    """Estimate what `patch` would find to first order, from one gradient instead of a run for each patch.

    A patch changes the metric by about (clean - corrupted) times the metric's gradient at the corrupted activation
    (Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"). The estimate is good for small
    changes, and can be far off for large ones such as whole residual streams of early layers.

    Arguments, result and errors are those of `patch`.
    """
    _check_lengths(clean, corrupted)
    chosen = _in_blocks(model, where)
    _check_heads(chosen, heads)
    wanted = [one.name for _, one in chosen]
    given = run_with_cache(model, [clean], [*wanted, "logits"])
    taken = run_with_cache(model, [corrupted], [*wanted, "logits"], metric=lambda logits: metric(logits[:, -1].float()))
    both = [float(metric(cache["logits"][:, -1].float())[0]) for cache in (given, taken)]
    values = []
    for _, activation in chosen:
        name = activation.name
        effect = ((given[name] - taken[name]) * taken.gradients[name])[0].double()  # [*shape]
        kept = {axis for axis, asked in ((activation.token_axis, positions), (0, heads)) if asked}
        summed = [axis for axis in range(effect.ndim) if axis not in kept]
        values.append((effect.sum(summed) if summed else effect).cpu().numpy())
    n_heads = model.config.n_heads if heads else 1
    cells = _PatchAxes([layer for layer, _ in chosen], heads, positions, n_heads, token_labels(corrupted, tokens))
    return Patching(cells.labelled(np.array(values) + both[1], f"estimated patch of {where}"), *both)


def _check_heads(chosen: Sequence[tuple[int, Activation]], heads: bool) -> None:
    if heads and not chosen[0][1].per_head:
        raise InputError(f"{chosen[0][1].name} has no heads; leave heads out, or patch blocks.*.attention.mixed.")


def _run_patches(
    model: GPTModel, start: Tensor, layer: int, patches: _Patches, metric: LogitMetric, shape: tuple[int, int]
) -> list[float]:
    """Return the metric after each patch of one layer, head by head and position by position."""
    cells = list(product(range(shape[0]), range(shape[1])))
    found: list[float] = []
    for begin in range(0, len(cells), _MOST_ROWS):
        patches.cells = cells[begin : begin + _MOST_ROWS]
        with installed(model, patches):
            logits = last_logits_from(model, start.expand(len(patches.cells), -1, -1), layer)
        found += metric(logits.float()).double().tolist()
    return found


def _check_lengths(clean: Sequence[int], corrupted: Sequence[int]) -> None:
    if len(clean) != len(corrupted):
        raise InputError(
            f"the clean text has {len(clean)} tokens and the corrupted one {len(corrupted)}; a patch goes from a "
            "position to the same position, so give texts of one length."
        )


class _Patches:
    """An ActivationHook that gives row n of a batch the clean value at cell n."""

    def __init__(self, activation: Activation, clean: Tensor, heads: bool, positions: bool) -> None:
        self.activations: tuple[Activation, ...] = (activation,)
        self.cells: list[tuple[int, int]] = []
        self._clean, self._heads, self._positions = clean, heads, positions

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        patched = tensor.clone()
        axis = activation.token_axis
        for row, (head, position) in enumerate(self.cells):
            index: list[int | slice] = [slice(None)] * self._clean.ndim
            if self._heads:
                index[0] = head
            if self._positions:
                index[axis] = position
            patched[(row, *index)] = self._clean[tuple(index)]
        return patched


def _in_blocks(model: GPTModel, where: str) -> list[tuple[int, Activation]]:
    """Return block and activation for each activation that a name means.

    Raises:
        InputError: if it means none, or one outside the blocks.
    """
    found = names(model.config).find(where)
    chosen = [(int(one.name.split(".")[1]), one) for one in found if one.name.startswith("blocks.")]
    kinds = {one.name.split(".", 2)[2] for _, one in chosen}
    if len(chosen) != len(found) or len(kinds) != 1:
        raise InputError(
            f"{where!r} means {', '.join(one.name for one in found[:3])}{', ...' if len(found) > 3 else ''}; a "
            "sweep goes over one activation of the blocks, such as 'blocks.*.residual_in'."
        )
    return chosen


@torch.no_grad()
def path_patch(
    model: GPTModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    sender: tuple[int, int],
    receiver: str,
    metric: LogitMetric,
) -> tuple[float, float, float]:
    """Patch only the direct path from one head to the inputs of later parts (Wang et al. 2022, section 3.1).

    The head's output of the clean text is put into the corrupted text while every other head and feed-forward layer
    keeps its corrupted output; what arrives at the receiver is recorded, and then only the receiver is patched with it.

    Args:
        model: the model.
        clean: the text that the sender's output is taken from.
        corrupted: the text that is run, as long as the clean one.
        sender: layer and head.
        receiver: activations that receive it, with wildcards, such as "blocks.9.attention.queries" or "logits".
        metric: what to measure, from the logits after the last token.

    Returns:
        the metric after the patch, of the clean text, and of the corrupted text.

    Raises:
        InputError: if the texts differ in length, the sender or the receiver does not exist, or no path leads from one
            to the other.
    """
    layer, head = sender
    config = model.config
    if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
        raise InputError(
            f"there is no head {head} in layer {layer}; layers are 0 to {config.n_layers - 1}, heads 0 to "
            f"{config.n_heads - 1}."
        )
    _check_lengths(clean, corrupted)
    receivers = names(config).find(receiver)
    order = list(names(config))  # in which they are computed
    if order.index(receivers[-1].name) < order.index(f"blocks.{layer}.attention.mixed"):
        raise InputError(f"{receiver!r} is computed before head {head} of layer {layer}, so no path leads to it.")
    frozen = ["blocks.*.attention.mixed", "blocks.*.feed_forward.output"]
    given = run_with_cache(model, [clean], f"blocks.{layer}.attention.mixed")
    kept = run_with_cache(model, [corrupted], frozen)
    held = {name: value.clone() for name, value in kept.items()}
    held[f"blocks.{layer}.attention.mixed"][:, head] = given[f"blocks.{layer}.attention.mixed"][:, head]
    freeze = _Replace(tuple(names(config)[name] for name in held), held)
    with installed(model, freeze):
        arrived = run_with_cache(model, [corrupted], [one.name for one in receivers])
    replace = _Replace(receivers, dict(arrived))
    with installed(model, replace):
        patched = float(metric(model(padded(model, [corrupted]))[:, -1].float())[0])
    clean_metric, corrupted_metric = (
        float(metric(model(padded(model, [ids]))[:, -1].float())[0]) for ids in (clean, corrupted)
    )
    return patched, clean_metric, corrupted_metric


class _Replace:
    """An ActivationHook that puts recorded values in the place of activations."""

    def __init__(self, activations: tuple[Activation, ...], values: dict[str, Tensor]) -> None:
        self.activations = activations
        self._values = values

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        return self._values[activation.name].expand_as(tensor)
