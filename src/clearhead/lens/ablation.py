"""Remove what a part of the model computes, and add vectors to steer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.activations import Activation, names
from clearhead.lens.cache import run_with_cache
from clearhead.lens.editing import edit
from clearhead.lens.results import ActivationCache
from clearhead.model import GPTModel

AblationKind = Literal["zero", "mean", "resample"]
KINDS: tuple[AblationKind, ...] = ("zero", "mean", "resample")


@contextmanager
def ablate(
    model: GPTModel,
    wanted: str | Sequence[str],
    kind: AblationKind = "mean",
    *,
    heads: int | Sequence[int] | None = None,
    reference: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Inside a `with`, run the model without what some of its parts compute.

    Args:
        model: the model.
        wanted: names of activations, with wildcards, such as "blocks.5.feed_forward.output".
        kind: "zero" puts 0 in their place; "mean" their mean over the tokens of the reference texts; "resample" the
            value of a reference token drawn at random for each token.
        heads: ablate these heads only.
        reference: texts as token ids, for "mean" and "resample".
        seed: for "resample".

    Raises:
        InputError: if a name or kind is unknown, there are no reference texts, or an activation's values have no tokens
            of their own to average over (scores and patterns).
    """
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; the kinds of ablation are {', '.join(KINDS)}.")
    chosen = names(model.config).find(wanted)
    with ExitStack() as stack:
        if kind == "zero":
            stack.enter_context(edit(model, wanted, 0.0, heads=heads))
            yield
            return
        if not reference:
            raise InputError(f"an ablation by {kind} needs reference texts; give token ids of at least one text.")
        cache = run_with_cache(model, reference, [one.name for one in chosen])
        generator = torch.Generator().manual_seed(seed)
        for one in chosen:
            pool = reference_values(cache, one)  # [N, *shape of one token]
            stack.enter_context(edit(model, one.name, _AblatedValue(one, pool, kind, generator), heads=heads))
        yield


class _AblatedValue:
    """The function from a value to its ablated value, for `edit`."""

    def __init__(self, activation: Activation, pool: Tensor, kind: AblationKind, generator: torch.Generator) -> None:
        self._activation, self._pool, self._generator = activation, pool, generator
        self._mean = pool.mean(0) if kind == "mean" else None

    def __call__(self, value: Tensor) -> Tensor:
        axis = self._activation.token_axis
        n = value.shape[axis]
        if self._mean is not None:
            return self._mean.unsqueeze(axis).expand_as(value)
        drawn = torch.randint(len(self._pool), (n,), generator=self._generator)
        return self._pool[drawn.to(self._pool.device)].movedim(0, axis)


def reference_values(cache: ActivationCache[Tensor], activation: Activation) -> Tensor:
    """Return an activation's values at all tokens of a cache, [N, *shape of one token].

    Raises:
        InputError: if the activation relates tokens to tokens.
    """
    if activation.letters.count("T") != 1:
        raise InputError(
            f"{activation.name} relates each token to all others, so it has no value of one token to average; ablate "
            "attention.mixed or attention.output."
        )
    axis = activation.token_axis
    values = [
        value.narrow(axis, 0, length).movedim(axis, 0)
        for value, length in zip(cache[activation.name], cache.lengths, strict=True)
    ]
    return torch.cat(values)


@torch.no_grad()
def steering_vector(
    model: GPTModel, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], layer: int
) -> Tensor:
    """Return the difference of two sets of texts in the residual stream before a block, [C].

    It is the mean over the last tokens of the texts of one set minus that of the other (Turner et al. 2023, "Activation
    Addition").

    Args:
        model: the model.
        towards, away: texts as token ids.
        layer: the block.

    Raises:
        InputError: if a set is empty or the block does not exist.
    """
    name = f"blocks.{layer}.residual_in"
    means = []
    for texts in (towards, away):
        means.append(run_with_cache(model, texts, name, positions=-1)[name].mean((0, 1)))
    return means[0] - means[1]


@contextmanager
def steer(
    model: GPTModel, vector: Tensor | npt.NDArray[np.floating[Any]], layer: int, strength: float = 1.0
) -> Iterator[None]:
    """Inside a `with`, add a vector to the residual stream before a block, at every token.

    Args:
        model: the model.
        vector: [C], such as `steering_vector` returns.
        layer: the block.
        strength: a factor on the vector.

    Raises:
        InputError: if the vector's shape does not fit or the block does not exist.
    """
    added = torch.as_tensor(vector)
    if tuple(added.shape) != (model.config.emb_dim,):
        raise InputError(f"the vector has shape {list(added.shape)}; [{model.config.emb_dim}] was expected.")
    with edit(model, f"blocks.{layer}.residual_in", lambda value: value + strength * added.to(value)):
        yield
