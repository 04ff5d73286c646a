"""Arrays whose axes have names and labels, that print as a table and show themselves as a heat map in notebooks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clearhead.drawing.heat_map import signed_heat_map
from clearhead.drawing.png import save_picture
from clearhead.drawing.svg import inline
from clearhead.errors import InputError

_MOST_CELLS = 4_096
"""Beyond this a heat map's cells are too small to read."""


@dataclass(frozen=True, eq=False)
class LabelledArray:
    """Numbers with names for their axes and labels for their entries.

    Attributes:
        values: float64, one axis for each of `axes`.
        axes: the names of the axes, such as ("layer", "position").
        labels: the labels of each axis's entries.
        title: what the numbers are.
    """

    values: npt.NDArray[np.float64]
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        sizes = tuple(len(names) for names in self.labels)
        if self.values.shape != sizes or len(self.axes) != len(sizes):
            raise InputError(
                f"the values have shape {list(self.values.shape)}, but the labels are for {list(sizes)} on axes "
                f"{', '.join(self.axes)}; give one label for each entry."
            )

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        """Return the values, so that NumPy's functions take the object itself."""
        return np.asarray(self.values, dtype)

    def top(self, n: int = 5) -> list[tuple[tuple[str, ...], float]]:
        """Return the n entries of largest magnitude: their labels, one for each axis, and their values."""
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")[:n]
        indices = [np.unravel_index(flat, self.values.shape) for flat in order]
        return [
            (tuple(names[i] for names, i in zip(self.labels, index, strict=True)), float(self.values[index]))
            for index in indices
        ]

    def sum(self) -> float:
        """Return the sum of all values."""
        return float(self.values.sum())

    def to_svg(self, lang: str = "en") -> str:
        """Return a heat map: the last axis from left to right, all others from top to bottom.

        Raises:
            InputError: if there are too many entries to read.
        """
        if self.values.size > _MOST_CELLS:
            raise InputError(
                f"{self.values.size:,} values are too many for a heat map; select at most {_MOST_CELLS:,}."
            )
        columns = self.labels[-1]
        rows: list[str] = [""]
        for names in self.labels[:-1]:
            rows = [f"{before} {name}".strip() for before in rows for name in names]
        table = self.values.reshape(len(rows), len(columns))
        title = self.title or " × ".join(self.axes)
        return signed_heat_map(title, table.tolist(), rows, columns, lang=lang)

    def save(self, path: str | os.PathLike[str], lang: str = "en") -> None:
        """Write the heat map to a file whose name ends in `.svg` or `.png`.

        Raises:
            InputError: if there are too many entries to read, or the file cannot be written.
        """
        save_picture(self.to_svg(lang), Path(path))

    def _repr_html_(self) -> str:
        return picture_html(self.to_svg()) if self.values.size <= _MOST_CELLS else f"<pre>{escape(repr(self))}</pre>"

    def __repr__(self) -> str:
        shape = " × ".join(f"{len(names)} {axis}s" for axis, names in zip(self.axes, self.labels, strict=True))
        lines = [f"{', '.join(names)}: {value:+.3f}" for names, value in self.top(5)]
        more = [] if self.values.size <= 5 else ["..."]
        return "\n".join([f"{self.title or 'values'} ({shape}), largest first", *lines, *more])


def picture_html(svg: str) -> str:
    """Return a picture for a notebook, isolated from other pictures' styles; a wide one scrolls."""
    return f'<div style="overflow-x: auto">{inline(svg)}</div>'


def numbered(n: int) -> tuple[str, ...]:
    """Return the labels "0", "1", ... for n entries."""
    return tuple(str(i) for i in range(n))


def token_labels(ids: Sequence[int], tokens: Sequence[str] | None) -> tuple[str, ...]:
    """Return a label for each position: its number and its text (or id)."""
    texts = [str(id) for id in ids] if tokens is None else tokens
    return tuple(f"{i} {text}" for i, text in enumerate(texts))
