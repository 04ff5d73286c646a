"""Running a model on a text and keeping the values on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.catalogue import Value, check_indices, names
from clearhead.lens.taps import installed
from clearhead.model import GPTModel


class Trace(Mapping[str, Any]):
    """The values that were watched, by name, in the order in which the model computed them; prints as a table.

    Attributes:
        ids: the tokens of the text.
        tokens: their pieces of text, where there is a tokenizer; a byte that is no whole character is a mark.
    """

    def __init__(self, values: Mapping[str, Any], ids: Sequence[int], tokens: Sequence[str] | None = None) -> None:
        self.ids = tuple(ids)
        self.tokens = None if tokens is None else tuple(tokens)
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        """One value: float32 of the shape that `names` gives; as a tensor where that was asked for."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        text = "" if self.tokens is None else ": " + " ".join(repr(token) for token in self.tokens)
        width = max(len(name) for name in self)
        rows = [f"{name:<{width}}  {list(map(int, value.shape))}" for name, value in self.items()]
        return "\n".join([f"{len(self.ids):,} tokens{text}", *rows])


class _Keep:
    """A Tap that keeps what passes."""

    def __init__(self, values: tuple[Value, ...], positions: Sequence[int] | None) -> None:
        self.values = values
        self.positions = positions
        self.kept: dict[str, Tensor] = {}

    def at(self, value: Value, tensor: Tensor, positions: Tensor) -> Tensor:
        found = tensor[0].detach()
        if self.positions is None:
            # A copy: a view would hold on to the whole batch and to what an edit's function may still write into.
            self.kept[value.name] = found.clone()
        else:
            chosen = torch.tensor(self.positions, device=found.device)
            self.kept[value.name] = found.index_select(value.token_axis, chosen)
        return tensor


def watch(
    model: GPTModel,
    ids: Sequence[int],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    as_torch: bool = False,
) -> Trace:
    """Runs a text through a model once and returns the values inside it.

    Args:
        model: run in evaluation mode, and put back into its own after it.
        ids: the text's tokens, at most context_length.
        wanted: names of values, with wildcards; all of them where it is left out, of which scores, patterns and
            logits are the large ones (for 1,024 tokens of the 124M 604 MB, 604 MB and 206 MB).
        positions: keep what belongs to the tokens at these places only, in this order; of scores and patterns, their
            rows. All of them where it is left out.
        tokens: the pieces of text that the ids stand for, to print.
        as_torch: whether to return tensors, on the model's device and in its type, and not NumPy arrays in float32.

    Raises:
        InputError: for an unknown name, no tokens, too many, one that is not in the vocabulary, or a
            position outside the text.
    """
    values = names(model.config).find(wanted)
    _check(model, ids)
    keep = _Keep(values, None if positions is None else check_indices("position", positions, len(ids), "text"))
    training = model.training
    model.eval()
    try:
        with installed(model, keep), torch.no_grad():
            model(torch.tensor([list(ids)], device=model.token_embedding.weight.device))
    finally:
        model.train(training)
    # The model computes some values a line earlier or later than the catalogue says; the order is the catalogue's.
    found = {value.name: keep.kept[value.name] for value in keep.values}
    return Trace(found if as_torch else {name: _array(tensor) for name, tensor in found.items()}, ids, tokens)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _check(model: GPTModel, ids: Sequence[int]) -> None:
    config = model.config
    if not len(ids):
        raise InputError("there are no tokens to watch; give a text with at least one.")
    if len(ids) > config.context_length:
        raise InputError(
            f"the text has {len(ids):,} tokens, but the model reads {config.context_length:,}; shorten it."
        )
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise InputError(f"token id {token} is not in the vocabulary of {config.vocab_size:,} (from 0).")
