"""Run a model on a text and record activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.activations import Activation, check_indices, names
from clearhead.lens.hooks import installed
from clearhead.model import GPTModel

Array = TypeVar("Array", npt.NDArray[np.float32], Tensor)


class Trace(Mapping[str, Array]):
    """Recorded activations by name, in the order in which the model computes them; prints as a table.

    Attributes:
        ids: the tokens of the text.
        tokens: their text, if there is a tokenizer; bytes that are not a whole character are written in hexadecimal.
    """

    def __init__(self, values: Mapping[str, Array], ids: Sequence[int], tokens: Sequence[str] | None = None) -> None:
        self.ids = tuple(ids)
        self.tokens = None if tokens is None else tuple(tokens)
        self._values: dict[str, Array] = dict(values)

    def __getitem__(self, name: str) -> Array:
        """Return one activation: float32 of the shape that `names` gives; or a tensor, with `as_torch`."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        text = "" if self.tokens is None else ": " + " ".join(repr(token) for token in self.tokens)
        width = max(len(name) for name in self)
        rows: list[str] = [f"{name:<{width}}  {list(map(int, self[name].shape))}" for name in self]
        return "\n".join([f"{len(self.ids):,} tokens{text}", *rows])


class _Recorder:
    """A hook that records activations."""

    def __init__(self, activations: tuple[Activation, ...], positions: Sequence[int] | None) -> None:
        self.activations = activations
        self.positions = positions
        self.recorded: dict[str, Tensor] = {}

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        found = tensor[0].detach()
        if self.positions is None:
            # A copy: a view would keep the whole batch in memory, and an edit's function may still write into it.
            self.recorded[activation.name] = found.clone()
        else:
            chosen = torch.tensor(self.positions, device=found.device)
            self.recorded[activation.name] = found.index_select(activation.token_axis, chosen)
        return tensor


@overload
def watch(
    model: GPTModel,
    ids: Sequence[int],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    as_torch: Literal[False] = False,
) -> Trace[npt.NDArray[np.float32]]: ...


@overload
def watch(
    model: GPTModel,
    ids: Sequence[int],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    as_torch: Literal[True],
) -> Trace[Tensor]: ...


def watch(
    model: GPTModel,
    ids: Sequence[int],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    as_torch: bool = False,
) -> Trace[npt.NDArray[np.float32]] | Trace[Tensor]:
    """Run a text through a model once and return its activations.

    Args:
        model: run in evaluation mode, and put back into its own mode afterwards.
        ids: the text's tokens, at most context_length.
        wanted: names of activations, with wildcards; all of them by default, of which scores, patterns and logits are
            the large ones (for 1,024 tokens of the 124M 604 MB, 604 MB and 206 MB).
        positions: record the tokens at these positions only, in this order; for scores and patterns, their rows. All
            of them by default.
        tokens: the text of each id, to print.
        as_torch: return tensors, on the model's device and in its dtype, instead of NumPy arrays in float32.

    Raises:
        InputError: if a name is unknown, there are no tokens, too many, one outside the vocabulary, or a position
            outside the text.
    """
    activations = names(model.config).find(wanted)
    _check(model, ids)
    chosen = None if positions is None else check_indices("position", positions, len(ids), "text")
    recorder = _Recorder(activations, chosen)
    training = model.training
    model.eval()
    try:
        with installed(model, recorder), torch.no_grad():
            model(torch.tensor([list(ids)], device=model.token_embedding.weight.device))
    finally:
        model.train(training)
    # The model computes some activations a line earlier or later than the table says; the order is the table's.
    found = {one.name: recorder.recorded[one.name] for one in activations}
    if as_torch:
        return Trace[Tensor](found, ids, tokens)
    arrays: dict[str, npt.NDArray[np.float32]] = {name: one.float().cpu().numpy() for name, one in found.items()}
    return Trace[npt.NDArray[np.float32]](arrays, ids, tokens)


def _check(model: GPTModel, ids: Sequence[int]) -> None:
    config = model.config
    if not len(ids):
        raise InputError("there are no tokens to watch; give a text with at least one.")
    if len(ids) > config.context_length:
        raise InputError(
            f"the text has {len(ids):,} tokens, but the model reads {config.context_length:,}; shorten it."
        )
    check_token_ids(ids, config.vocab_size)
