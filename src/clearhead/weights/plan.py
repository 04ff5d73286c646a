"""A conversion plan: how every tensor of one layout is made from another layout's tensors.

`planning.make_plan` makes a plan from names and shapes. A plan can be printed as a table, drawn, run, and inverted
(`planning.invert_plan`).
Data is read only when the plan runs, one target at a time.

Example:
    >>> plan = clearhead.weights.open("models/gpt2").plan()
    >>> for row in plan.rows():
    ...     print(row.target, row.shape, row.operations, row.sources)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.utils.html import html_table
from clearhead.weights.layouts import axis_sizes
from clearhead.weights.steps import TargetStep, TensorReader
from clearhead.weights.tensors import TensorInfo

_MAX_THREADS = 4  # more do not move memory faster


@dataclass(frozen=True)
class PlanRow:
    """One line of a plan, for printing.

    Attributes:
        target: the tensor that is made; empty for a source that is ignored.
        shape: the target's shape; the source's shape if the source is ignored.
        sources: the stored tensors that it comes from.
        operations: what is done, in order: `take`, `squeeze`, `split`, `transpose`, `rearrange`, `reshape`, `stack`,
            `unsqueeze`, `scale`, `cast`, `zeros`, `tie`, `ignore`.
        reason: why the tensor is tied, filled with zeros or ignored.
    """

    target: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    operations: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, repr=False)
class ConversionPlan:
    """How every tensor of one layout is made from another layout's tensors.

    Attributes:
        origin: the layout of the sources.
        to: the layout of the targets.
        config: the model's shape.
        steps: one step per target, in the order of the model.
        tied: targets that are another target's own tensor, by name; `run` yields each tensor once.
        ignored: sources that are not used, with the reason.
        sources: every tensor that the source holds.
    """

    origin: str
    to: str
    config: GPTConfig
    steps: tuple[TargetStep, ...]
    tied: Mapping[str, str]
    ignored: Mapping[str, str]
    sources: Mapping[str, TensorInfo]
    _read: TensorReader = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return f"ConversionPlan({self.origin} → {self.to}: {len(self.sources):,} tensors become {len(self.steps):,})"

    def _repr_html_(self) -> str:
        rows = (
            (", ".join(row.sources), " ".join(row.operations), row.target, " × ".join(map(str, row.shape)), row.reason)
            for row in self.rows()
        )
        return html_table(["stored", "by", "becomes", "shape", "why"], rows, repr(self))

    @cached_property
    def _by_target(self) -> dict[str, TargetStep]:
        return {step.target: step for step in self.steps}

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """The shape of every target that `run` yields, by name."""
        sizes = axis_sizes(self.config)
        return {step.target: step.tensor.shape(sizes) for step in self.steps}

    def rows(self) -> list[PlanRow]:
        """Return the plan as lines of a table: every target, then every source that is ignored."""
        shapes = self.targets
        rows = [
            PlanRow(s.target, shapes[s.target], tuple(p.source for p in s.slices), s.operations(), s.reason)
            for s in self.steps
        ]
        for name, other in self.tied.items():
            rows.append(PlanRow(name, shapes[other], (other,), ("tie",), "the head is the token embedding"))
        for name, reason in self.ignored.items():
            rows.append(PlanRow("", self.sources[name].shape, (name,), ("ignore",), reason))
        return rows

    def read(self, target: str, dtype: str | None = "float32", row_major: bool = True) -> npt.NDArray[Any]:
        """Return one target's values; see `run`.

        Args:
            target: its name.
            dtype: as for `run`.
            row_major: if False, a matrix that is stored transposed is returned as a column-major view, without a copy.

        Raises:
            KeyError: if the plan makes no such target.
            WeightsError: if the data cannot be read.
        """
        step = self._by_target[self.tied.get(target, target)]
        return step.make(self._read, axis_sizes(self.config), None if dtype is None else np.dtype(dtype), row_major)

    def run(self, dtype: str | None = "float32") -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield every target with its values, one at a time, in the order of the model.

        Args:
            dtype: the NumPy dtype to return; None for the stored one (bfloat16, which NumPy lacks, as float32).

        Yields:
            A name and a contiguous array. The array may be a view of the file; changing it changes no file.

        Raises:
            WeightsError: if the data cannot be read.
        """
        sizes = axis_sizes(self.config)
        for step in self.steps:
            yield step.target, step.make(self._read, sizes, None if dtype is None else np.dtype(dtype))

    def run_parallel(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield what `run` yields, making several targets at a time: for callers that keep every tensor."""
        from concurrent.futures import (
            ThreadPoolExecutor,  # here, because a plan that is only inspected needs no threads
        )

        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            try:
                yield from zip(self.targets, pool.map(self.read, self.targets), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def chunks(self, target: str) -> Iterator[npt.NDArray[Any]]:
        """Yield one target's values as stored, in order: layer by layer if the target is a stack of layers.

        Raises:
            KeyError: if the plan makes no such target.
            WeightsError: if the data cannot be read.
        """
        sizes = axis_sizes(self.config)
        for step in self._by_target[target].layers(self.config.n_layers):
            yield step.make(self._read, sizes, None)

    def with_progress(self, advance: Callable[[int], None]) -> ConversionPlan:
        """Return the same plan; it calls `advance` with the number of stored bytes whenever it has read a source."""
        return replace(self, _read=_ProgressReader(self._read, self.sources, self.config.n_layers, advance))

    @property
    def used_bytes(self) -> int:
        """The stored size of all sources that the plan reads."""
        used = {part.source: part.info.nbytes for step in self.steps for part in step.slices}
        return sum(used.values())


class _ProgressReader:
    """Reads through another reader and reports the number of bytes."""

    def __init__(
        self, read: TensorReader, sources: Mapping[str, TensorInfo], n_layers: int, advance: Callable[[int], None]
    ) -> None:
        self._read, self._sources, self._n_layers, self._advance = read, sources, n_layers, advance
        if (read_layer := getattr(read, "layer", None)) is not None:
            self._read_layer = read_layer
            self.layer = self._one_layer

    def __call__(self, name: str) -> npt.NDArray[Any]:
        values = self._read(name)
        self._advance(self._sources[name].nbytes)
        return values

    def _one_layer(self, name: str, layer: int) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._read_layer(name, layer)
        self._advance(self._sources[name].nbytes // self._n_layers)
        return values


class LazyTensors(Mapping[str, npt.NDArray[Any]]):
    """A plan's targets as a mapping that reads a tensor when it is asked for; it includes tied names.

    With `row_major` False, matrices that are stored transposed are column-major views and not copies.
    """

    def __init__(self, plan: ConversionPlan, row_major: bool = True) -> None:
        self._plan, self._row_major = plan, row_major
        self._names = [*plan.targets, *plan.tied]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return the tensor as float32, read anew each time."""
        return self._plan.read(name, row_major=self._row_major)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape without reading it."""
        return self._plan.targets[self._plan.tied.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
