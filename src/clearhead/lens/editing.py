"""Changing a value on its way through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.catalogue import Value, check_indices, names
from clearhead.lens.taps import installed
from clearhead.model import GPTModel

Change = Callable[[Tensor], Any] | Any
"""A number, an array or a tensor to put in the value's place, or a function from the value to it."""


@contextmanager
def edit(
    model: GPTModel,
    wanted: str | Iterable[str],
    change: Change,
    *,
    heads: int | Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """While it is open, every run of the model goes on with a changed value.

    Args:
        model: it has hooks meanwhile; another thread that runs it gets the change too.
        wanted: which value, or several with wildcards.
        change: what to put in its place. A number or array is broadcast to the value's shape. A function gets a
            copy of the value of one sequence, a tensor of the shape that `names` gives, and returns the new one.
        heads: change these heads only, counted from 0; for values that each head has.
        positions: change the vectors (rows, of scores and pattern) of the tokens at these places only, counted from 0.

    While text is generated, each pass of the model has new tokens only: the prompt's first, then one at a time. A
    function is called in each pass; the last axis of scores and pattern then counts all tokens so far. An array with
    an axis for tokens has one entry for each of `positions`, or for the tokens from the first on; the first pass
    must have as many, and tokens that are generated after them are left alone.

    Raises:
        InputError: for an unknown name, a head or position out of range, a change that is no numbers; and in the run,
            where a new value's shape does not fit.
    """
    config, values = model.config, names(model.config).find(wanted)
    for value in values:
        if heads is not None and not value.per_head:
            raise InputError(f"{value.name} is not kept by heads; leave heads out, or edit attention.mixed.")
    tap = _Edit(
        values,
        change,
        None if heads is None else check_indices("head", heads, config.n_heads, "model"),
        None if positions is None else check_indices("position", positions, config.context_length, "model"),
    )
    with installed(model, tap):
        yield


class _Edit:
    """A Tap that changes what passes."""

    def __init__(
        self, values: tuple[Value, ...], change: Change, heads: list[int] | None, positions: list[int] | None
    ) -> None:
        self.values = values
        self.heads = heads
        self.positions = positions
        self.change = change if callable(change) else None
        self.array = None if callable(change) else _tensor(change, "the change")

    def at(self, value: Value, tensor: Tensor, positions: Tensor) -> Tensor:
        """Each sequence of the batch by itself."""
        rows = [self._one(value, *row) for row in zip(tensor, positions.tolist(), strict=True)]
        if all(new is old for new, old in zip(rows, tensor, strict=True)):
            return tensor
        return torch.stack(rows)

    def _one(self, value: Value, old: Tensor, places: list[int]) -> Tensor:
        axis = value.token_axis
        if self.array is None:
            entries = self._tokens(places)
            assert self.change is not None
            new = self.change(old.clone())
            if new is None:
                raise InputError(f"the function that edits {value.name} returned None; let it return the new value.")
            new = _tensor(new, f"what the function that edits {value.name} returned").to(old)
            part = _broadcast(new, old.shape, value)[self._index(axis, entries)]
        else:
            part, entries = self._from_array(value, axis, places, old)
        index = self._index(axis, entries)
        result = old.clone()
        result[index] = part
        return result

    def _tokens(self, places: list[int]) -> list[int]:
        """The tokens of this pass that are to change."""
        return [t for t, place in enumerate(places) if self.positions is None or place in self.positions]

    def _from_array(self, value: Value, axis: int, places: list[int], old: Tensor) -> tuple[Tensor, list[int]]:
        """The part of the array that this pass needs, and the tokens that it is for."""
        assert self.array is not None
        array = self.array.to(old)
        entries = self._tokens(places)
        from_end = axis - old.ndim
        if array.ndim >= -from_end and array.shape[from_end] != 1:  # it has an entry for each token
            of = list(range(array.shape[from_end])) if self.positions is None else self.positions
            if array.shape[from_end] != len(of) or (
                self.positions is None and places[0] == 0 and len(of) != len(places)
            ):
                expected = len(places) if self.positions is None else len(of)
                raise InputError(
                    f"the change of {value.name} has {array.shape[from_end]} tokens, where {expected} were expected."
                )
            entries = [t for t in entries if places[t] in of]
            array = array.index_select(
                from_end, torch.tensor([of.index(places[t]) for t in entries], device=old.device)
            )
        shape = list(old.shape)
        shape[axis] = len(entries)
        if self.heads is not None:
            shape[0] = len(self.heads)
        return _broadcast(array, torch.Size(shape), value), entries

    def _index(self, axis: int, tokens: list[int]) -> tuple[Any, ...]:
        """Where the tokens and heads that change are in a value: the head is the first axis, where there are heads."""
        if axis == 0:
            return (tokens,)
        if self.heads is None:
            return (slice(None), tokens)
        return ([[head] for head in self.heads], tokens)


def _tensor(given: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} is a {type(given).__name__}; a number, an array or a tensor was expected.") from None


def _broadcast(new: Tensor, shape: torch.Size, value: Value) -> Tensor:
    try:
        return new.broadcast_to(shape)
    except RuntimeError:
        raise InputError(
            f"the new {value.name} has shape {list(new.shape)}, which does not fit {list(shape)} "
            f"([{', '.join(value.letters)}], as far as it changes)."
        ) from None
