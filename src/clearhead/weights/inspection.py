"""Inspect a model's file: what it holds, and which of its tensors are anomalous.

One tensor is read at a time, in chunks, so that a file larger than the memory can be inspected.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.grouping import NamePattern, group_layers
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.source import Source
from clearhead.weights.tensors import TensorInfo

_CHUNK = 1 << 20  # numbers that are read together

ANOMALIES = {
    "nan": "NaN in",
    "infinite": "infinity in",
    "zero": "only zeros in",
    "constant": "a single repeated value in",
}
"""How a report begins the list of the tensors with each anomaly."""


@dataclass(frozen=True)
class TensorStatistics:
    """Counts and moments of one stored tensor's numbers.

    Attributes:
        name: as stored.
        shape: as stored.
        dtype: as stored.
        nbytes: as stored.
        nan: how many numbers are NaN.
        infinite: how many are an infinity.
        minimum: of the finite numbers; None if there are none.
        maximum: likewise.
        mean: likewise, in float64.
        std: likewise; the standard deviation of the numbers, divided by their count.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    nan: int
    infinite: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None

    @property
    def constant(self) -> bool:
        """Whether it has several elements, all equal and finite."""
        several = int(np.prod(self.shape)) > 1
        return several and not self.nan and not self.infinite and self.minimum == self.maximum

    @property
    def zero(self) -> bool:
        """Whether every element is zero."""
        return not self.nan and not self.infinite and self.minimum == self.maximum == 0


@dataclass(frozen=True)
class Inspection:
    """What a model's file holds.

    Attributes:
        source: the model.
        tensors: every stored tensor, in the file's order.
        ignored: the stored tensors that a GPT-2 does not need, each with the reason.
        misfit: why the tensors do not fit the config; empty if they do.
        untrained: whether all weights of norms are one and all biases zero, as before training.
    """

    source: Source
    tensors: tuple[TensorStatistics, ...]
    ignored: dict[str, str]
    misfit: str
    untrained: bool

    @property
    def nbytes(self) -> int:
        """The stored size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """The number of tensors in each dtype, the most common first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())

    @property
    def head(self) -> str:
        """A phrase on the output head."""
        copies = [name for name, reason in self.ignored.items() if reason.startswith("the head is tied")]
        if not self.source.config.tie_weights:
            return "a tensor of its own, not tied to the token embedding"
        return "tied to the token embedding" + (f"; {copies[0]} is a stored copy of it" if copies else ", stored once")

    def anomalies(self) -> dict[str, list[NamePattern]]:
        """Return the anomalous tensors by kind; names that differ in their layer only are grouped.

        The kinds are `nan`, `infinite`, `zero` and `constant` (of a number other than zero). Tensors that the model
        does not need are left out, and so are the zeros and ones of an untrained model.
        """
        return {kind: self._named(holds) for kind, holds in _KINDS.items() if self._named(holds)}

    def _named(self, holds: Callable[[TensorStatistics], bool]) -> list[NamePattern]:
        found = [t.name for t in self.tensors if holds(t) and t.name not in self.ignored and not self._fresh(t)]
        return group_layers(found, LAYOUTS[self.source.layout])

    def _fresh(self, tensor: TensorStatistics) -> bool:
        """Return whether a tensor has the values that it has in every untrained model."""
        return self.untrained and tensor.constant and (tensor.zero or tensor.maximum == 1)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        source, found = self.source, self.anomalies()
        return {
            "model": source.name,
            "file": str(source.path),
            "layout": source.layout,
            "config": dataclasses.asdict(source.config),
            "head": self.head,
            "fits": not self.misfit,
            "misfit": self.misfit or None,
            "notes": list(source.notes),
            "tensor_count": len(self.tensors),
            "bytes": self.nbytes,
            "dtypes": self.dtypes,
            "untrained": self.untrained,
            "anomalies": {kind: [n for pattern in patterns for n in pattern.names] for kind, patterns in found.items()},
            "ignored": self.ignored,
            "tensors": [
                {**dataclasses.asdict(tensor), "zero": tensor.zero, "constant": tensor.constant}
                for tensor in self.tensors
            ],
        }


_KINDS: dict[str, Callable[[TensorStatistics], bool]] = {
    "nan": lambda tensor: tensor.nan > 0,
    "infinite": lambda tensor: tensor.infinite > 0,
    "zero": lambda tensor: tensor.zero,
    "constant": lambda tensor: tensor.constant and not tensor.zero,
}


def inspect_source(source: Source) -> Inspection:
    """Read every stored tensor once and measure it.

    Raises:
        WeightsError: if a tensor's data cannot be read. Tensors that do not fit the config are no error here;
            `Inspection.misfit` says what is wrong.
    """
    plan, misfit = None, ""
    try:
        plan = source.plan()
    except WeightsError as error:
        misfit = str(error)
    found = []
    total = sum(info.nbytes for info in source.tensors.values())
    with ByteProgress(f"Inspecting {source.name}", total) as progress:
        for name, info in source.tensors.items():

            def advance(done: int, info: TensorInfo = info) -> None:
                progress.advance(info.nbytes * done // max(info.size, 1))

            measured = measure(source.read(name), advance)
            found.append(TensorStatistics(name, info.shape, info.dtype, info.nbytes, **measured))
    tensors = tuple(found)
    ignored = dict(plan.ignored) if plan else {}
    return Inspection(source, tensors, ignored, misfit, plan is not None and _untrained(plan, tensors))


def measure(values: np.ndarray, advance: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
    """Return the counts and moments of an array's numbers, as the fields of `TensorStatistics`.

    Mean and variance are combined chunk by chunk, which stays exact if the numbers are far from zero
    (Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).

    Args:
        values: an array of any shape and dtype.
        advance: called after each chunk with its number of elements.
    """
    nan = infinite = count = 0
    low, high, mean, squares = np.inf, -np.inf, 0.0, 0.0
    for chunk in _chunks(values):
        numbers = chunk.astype(np.float64)
        finite = np.isfinite(numbers)
        if not finite.all():
            n_nan = int(np.isnan(numbers).sum())
            nan += n_nan
            infinite += int((~finite).sum()) - n_nan
            numbers = numbers[finite]
        if numbers.size:
            low, high = min(low, numbers.min()), max(high, numbers.max())
            chunk_mean, total = float(numbers.mean()), count + numbers.size
            step = chunk_mean - mean
            squares += float(((numbers - chunk_mean) ** 2).sum()) + step * step * count * numbers.size / total
            mean, count = mean + step * numbers.size / total, total
        advance(chunk.size)
    moments = (float(low), float(high), mean, (squares / count) ** 0.5) if count else (None, None, None, None)
    return {
        "nan": nan,
        "infinite": infinite,
        **dict(zip(("minimum", "maximum", "mean", "std"), moments, strict=True)),
    }


def _chunks(values: np.ndarray) -> Iterable[np.ndarray]:
    """Yield an array's numbers in chunks of a bounded size; views if the array is contiguous."""
    flat = values.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _untrained(plan: ConversionPlan, tensors: Iterable[TensorStatistics]) -> bool:
    """Return whether the weights of all norms are one and all biases zero, by the plan's names."""
    by_name = {tensor.name: tensor for tensor in tensors}
    norms, biases = [], []
    for step in plan.steps:
        stored = [by_name[part.source] for part in step.slices]
        if step.target.endswith(".bias"):
            biases += stored
        elif step.target.endswith(("norm_1.weight", "norm_2.weight", "final_norm.weight")):
            norms += stored
    # NaN is reported as an anomaly of its own; here the finite numbers decide.
    ones = all(tensor.minimum == tensor.maximum == 1 for tensor in norms)
    return bool(norms) and ones and all(tensor.minimum == tensor.maximum == 0 for tensor in biases)
