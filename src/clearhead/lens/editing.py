"""Replace activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.lens.activations import Activation, check_indices, names
from clearhead.lens.hooks import installed
from clearhead.model import GPTModel
from clearhead.utils.text import type_of

Change = float | Tensor | npt.ArrayLike | Callable[[Tensor], Tensor | float | npt.ArrayLike]
"""A number, an array or a tensor to replace an activation with, or a function from the activation to it."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of activations, as `edit` takes it, to run many of them in one pass.

    Attributes:
        names: the name of an activation, or several, with wildcards.
        change: the replacement, or a function from the activation to it.
        heads: change these heads only.
        positions: change the tokens at these positions only.
    """

    names: str | Iterable[str]
    change: Change
    heads: int | Sequence[int] | None = None
    positions: int | Sequence[int] | None = None


@contextmanager
def edit(
    model: GPTModel,
    wanted: str | Iterable[str],
    change: Change,
    *,
    heads: int | Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Replace activations in every run of the model inside a `with`.

    Args:
        model: it has hooks meanwhile; another thread that runs it gets the change too.
        wanted: the name of an activation, or several, with wildcards.
        change: the replacement. A number or array is broadcast to the activation's shape. A function gets a copy of
            the activation of one sequence, a tensor of the shape that `names` gives, and returns the new one.
        heads: change these heads only, counted from 0; for activations that each head has.
        positions: change the vectors (for scores and patterns, the rows) of the tokens at these positions only.

    While text is generated, each pass of the model has new tokens only: first the prompt's, then one at a time. A
    function is called in each pass; the last axis of scores and pattern then counts all tokens so far. An array with
    an axis for tokens has one entry for each of `positions`, or for the tokens from the first on; the first pass
    must have as many tokens, and tokens that are generated later are not changed.

    Raises:
        InputError: if a name is unknown, a head or position is out of range, or the change is not numeric; and during
            the run, if the shape of a new activation does not fit.
    """
    replacement = _replacement(model.config, Edit(wanted, change, heads, positions))
    with installed(model, replacement):
        yield


def _replacement(config: GPTConfig, wanted: Edit) -> _Replacement:
    """Return the hook for an edit.

    Raises:
        InputError: as `edit`, before anything runs.
    """
    activations, heads, positions = names(config).find(wanted.names), wanted.heads, wanted.positions
    for activation in activations:
        if heads is not None and not activation.per_head:
            raise InputError(f"{activation.name} has no axis for heads; leave heads out, or edit attention.mixed.")
    return _Replacement(
        activations,
        wanted.change,
        None if heads is None else check_indices("head", heads, config.n_heads, "model"),
        None if positions is None else check_indices("position", positions, config.context_length, "model"),
    )


class EditedRows:
    """Edits for each row of a batch.

    Args:
        config: the model's shape.
        edits: for each text one edit, or several that are applied in order.

    Raises:
        InputError: as `edit`.
    """

    def __init__(self, config: GPTConfig, edits: Sequence[Edit | Sequence[Edit]]) -> None:
        self._rows = [[_replacement(config, one) for one in ([row] if isinstance(row, Edit) else row)] for row in edits]

    def of(self, rows: Sequence[int]) -> _RowReplacements:
        """Return the hook for a batch of these texts, by their indices."""
        return _RowReplacements([self._rows[row] for row in rows])


class _RowReplacements:
    """An ActivationHook that changes each row of a batch in its own way."""

    def __init__(self, rows: list[list[_Replacement]]) -> None:
        found = {activation for row in rows for one in row for activation in one.activations}
        self.activations = tuple(found)
        self._rows = rows

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        changed = []
        for old, at, replacements in zip(tensor, positions.tolist(), self._rows, strict=True):
            new = old
            for one in replacements:
                if activation in one.activations:
                    new = one.replaced(activation, new, at)
            changed.append(new)
        return torch.stack(changed)


class _Replacement:
    """A hook that replaces activations."""

    def __init__(
        self, activations: tuple[Activation, ...], change: Change, heads: list[int] | None, positions: list[int] | None
    ) -> None:
        self.activations = activations
        self.heads = heads
        self.positions = positions
        self.change = change if callable(change) else None
        self.array = None if callable(change) else _tensor(change, "the change")

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        """Replace the activation of each sequence of the batch separately."""
        rows = [self.replaced(activation, *row) for row in zip(tensor, positions.tolist(), strict=True)]
        if all(new is old for new, old in zip(rows, tensor, strict=True)):
            return tensor
        return torch.stack(rows)

    def replaced(self, activation: Activation, old: Tensor, positions: list[int]) -> Tensor:
        """Return the new activation of one sequence, given the positions of its tokens in this pass."""
        axis = activation.token_axis
        if self.array is None:
            entries = self._tokens(positions)
            assert self.change is not None
            new = self.change(old.clone())
            if new is None:
                raise InputError(
                    f"the function that edits {activation.name} returned None; let it return the new activation."
                )
            new = _tensor(new, f"what the function that edits {activation.name} returned").to(old)
            part = _broadcast(new, old.shape, activation)[self._index(axis, entries)]
        else:
            part, entries = self._from_array(activation, axis, positions, old)
        index = self._index(axis, entries)
        result = old.clone()
        result[index] = part
        return result

    def _tokens(self, positions: list[int]) -> list[int]:
        """Return the indices of the tokens of this pass that are to change."""
        return [t for t, position in enumerate(positions) if self.positions is None or position in self.positions]

    def _from_array(
        self, activation: Activation, axis: int, positions: list[int], old: Tensor
    ) -> tuple[Tensor, list[int]]:
        """Return the part of the array that this pass needs, and the indices of its tokens."""
        assert self.array is not None
        array = self.array.to(old)
        entries = self._tokens(positions)
        from_end = axis - old.ndim
        if array.ndim >= -from_end and array.shape[from_end] != 1:  # it has an entry for each token
            of = list(range(array.shape[from_end])) if self.positions is None else self.positions
            if array.shape[from_end] != len(of) or (
                self.positions is None and positions[0] == 0 and len(of) != len(positions)
            ):
                expected = len(positions) if self.positions is None else len(of)
                raise InputError(
                    f"the change of {activation.name} has {array.shape[from_end]} tokens, but {expected} were expected."
                )
            entries = [t for t in entries if positions[t] in of]
            array = array.index_select(
                from_end, torch.tensor([of.index(positions[t]) for t in entries], device=old.device)
            )
        shape = list(old.shape)
        shape[axis] = len(entries)
        if self.heads is not None:
            shape[0] = len(self.heads)
        return _broadcast(array, torch.Size(shape), activation), entries

    def _index(self, axis: int, tokens: list[int]) -> tuple[Any, ...]:
        """Return the index of the tokens and heads that change; heads, if there are any, are the first axis."""
        if axis == 0:
            return (tokens,)
        if self.heads is None:
            return (slice(None), tokens)
        return ([[head] for head in self.heads], tokens)


def _tensor(given: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} is {type_of(given)}; give a number, an array or a tensor.") from None


def _broadcast(new: Tensor, shape: torch.Size, activation: Activation) -> Tensor:
    try:
        return new.broadcast_to(shape)
    except RuntimeError:
        raise InputError(
            f"the new {activation.name} has shape {list(new.shape)}, which does not fit {list(shape)} "
            f"([{', '.join(activation.letters)}], as far as it changes)."
        ) from None
