"""Results of watching: the activations of one text, or of a batch of texts, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", npt.NDArray[np.float32], "Tensor")


class ActivationsByName(Mapping[str, Array]):
    """Arrays by name, in the order in which the model computes them."""

    _values: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        """Return one activation.

        Raises:
            KeyError: if it was not recorded.
        """
        if name not in self._values:
            shown = list(self._values)
            kept = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
            raise KeyError(f"{name!r} was not recorded; what was: {kept}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def nbytes(self) -> int:
        """The memory that the values take, in bytes."""
        return sum(int(value.nbytes) for value in self._values.values())

    def _rows(self) -> list[tuple[str, list[int]]]:
        return [(name, list(map(int, value.shape))) for name, value in self._values.items()]

    def _table(self, caption: str) -> str:
        """Return an HTML table with one row for all blocks whose arrays have the same shape."""
        merged: dict[tuple[str, str], list[int]] = {}
        for name, shape in self._rows():
            block = re.match(r"blocks\.(\d+)\.", name)
            key = (re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name), str(shape))
            merged.setdefault(key, []).extend([int(block[1])] if block else [])
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{escape(name)}</code></td><td>{shape}</td>"
            f"<td>{_ranges(blocks)}</td></tr>"
            for (name, shape), blocks in merged.items()
        )
        head = "<tr><th style='text-align:left'>name</th><th>shape</th><th>i</th></tr>"
        total = f"{len(self):,} arrays, {self.nbytes / 1e6:,.1f} MB"
        return f"<div>{caption}<table><thead>{head}</thead><tbody>{rows}</tbody></table><small>{total}</small></div>"


class Trace(ActivationsByName[Array]):
    """The activations of one text by name, in the order in which the model computes them; prints as a table.

    Each is float32 of the shape that `names` gives, or a tensor where tensors were asked for.

    Attributes:
        ids: the tokens of the text.
        tokens: their text, if there is a tokenizer; bytes that are not a whole character are written in hexadecimal.
        gradients: of the metric with respect to each activation, by the same names; empty without a metric.
    """

    def __init__(
        self,
        values: Mapping[str, Array],
        ids: Sequence[int],
        tokens: Sequence[str] | None = None,
        gradients: Mapping[str, Array] | None = None,
    ) -> None:
        self._values: dict[str, Array] = dict(values)
        self.ids = tuple(ids)
        self.tokens = None if tokens is None else tuple(tokens)
        self.gradients: dict[str, Array] = dict(gradients or {})

    def __repr__(self) -> str:
        text = "" if self.tokens is None else ": " + " ".join(repr(token) for token in self.tokens)
        width: int = max(len(name) for name in self)
        return "\n".join(
            [f"{len(self.ids):,} tokens{text}", *(f"{name:<{width}}  {shape}" for name, shape in self._rows())]
        )

    def _repr_html_(self) -> str:
        shown = self.tokens or [str(id) for id in self.ids]
        marked = " ".join(f"<code>{escape(token)}</code>" for token in shown[:64]) + (" …" if len(shown) > 64 else "")
        return self._table(f"{len(self.ids):,} tokens: {marked}")


class ActivationCache(ActivationsByName[Array]):
    """The activations of a batch of texts by name, each [B, *shape of the longest text]; prints as a table.

    Texts are padded at the end, and attention never looks ahead, so padding changes nothing before it. Entries of
    padding are 0.

    Attributes:
        ids: the tokens of each text.
        lengths: how many tokens each text has.
        gradients: of the metric with respect to each activation, by the same names; empty without a metric.
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        values: Mapping[str, Array],
        token_axes: Mapping[str, Sequence[int]],
        gradients: Mapping[str, Array] | None = None,
    ) -> None:
        self._values: dict[str, Array] = dict(values)
        self.ids = tuple(tuple(text) for text in ids)
        self.lengths = tuple(len(text) for text in ids)
        self.gradients: dict[str, Array] = dict(gradients or {})
        self._token_axes = {name: tuple(axes) for name, axes in token_axes.items()}

    def text(self, index: int, tokens: Sequence[str] | None = None) -> Trace[Array]:
        """Return the activations of one text, without padding.

        Args:
            index: which text.
            tokens: the text of each of its ids, to print.
        """
        cut = {name: self._unpadded(name, value, index) for name, value in self.items()}
        gradients = {name: self._unpadded(name, value, index) for name, value in self.gradients.items()}
        return Trace(cut, self.ids[index], tokens, gradients)

    def _unpadded(self, name: str, value: Array, index: int) -> Array:
        kept: list[slice] = [slice(None)] * (value.ndim - 1)
        for axis in self._token_axes[name]:
            kept[axis] = slice(0, self.lengths[index])
        cut: Array = value[index][tuple(kept)]
        return cut

    def __repr__(self) -> str:
        return "\n".join([self._caption(), *(f"{name}  {shape}" for name, shape in self._rows())])

    def _repr_html_(self) -> str:
        return self._table(self._caption())

    def _caption(self) -> str:
        return f"{len(self.ids):,} texts of {min(self.lengths):,} to {max(self.lengths):,} tokens"


def to_numpy(values: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    """Return tensors as float32 arrays."""
    return {name: np.asarray(value.detach().float().cpu().numpy(), np.float32) for name, value in values.items()}


def numpy_trace(trace: Trace[Tensor]) -> Trace[npt.NDArray[np.float32]]:
    """Return a trace with arrays in place of tensors."""
    return Trace(to_numpy(trace), trace.ids, trace.tokens, to_numpy(trace.gradients))


def numpy_cache(cache: ActivationCache[Tensor]) -> ActivationCache[npt.NDArray[np.float32]]:
    """Return a cache with arrays in place of tensors."""
    return ActivationCache(cache.ids, to_numpy(cache), cache._token_axes, to_numpy(cache.gradients))


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text, with runs shortened: `0–5, 8`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
