"""Results of an evaluation task: metrics with standard errors, as a table, JSON or Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a result.

    Attributes:
        name: such as "acc".
        value: the number; an accuracy is a fraction.
        standard_error: of the value over the items; None if it is not a mean of items.
    """

    name: str
    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """The result of one task.

    Attributes:
        task: the task's name.
        metrics: its numbers.
        n: the number of items.
        settings: everything that decides the numbers besides the model.
        groups: results of parts of the task, by name, such as BLiMP's paradigms.
    """

    task: str
    metrics: tuple[Metric, ...]
    n: int
    settings: Mapping[str, Any]
    groups: Mapping[str, Sequence[Metric]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of this name.

        Raises:
            KeyError: if there is none.
        """
        return {metric.name: metric for metric in self.metrics}[name]

    def as_json(self) -> dict[str, Any]:
        """Return the result as values that `json` can write."""
        return {
            "task": self.task,
            "n": self.n,
            **_as_json(self.metrics),
            "settings": dict(self.settings),
            **({"groups": {name: _as_json(metrics) for name, metrics in self.groups.items()}} if self.groups else {}),
        }


def accuracy(name: str, right: Sequence[bool]) -> Metric:
    """Return the share of right answers, with the standard error of a proportion."""
    n = len(right)
    value = sum(right) / n
    return Metric(name, value, math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None)


def perplexity(name: str, nats: Sequence[float]) -> Metric:
    """Return exp of the mean of some surprisals, with the standard error of the mean carried through exp."""
    n = len(nats)
    mean = math.fsum(nats) / n
    value = math.exp(mean) if mean < 700 else math.inf
    if n < 2:
        return Metric(name, value)
    variance = math.fsum((one - mean) ** 2 for one in nats) / (n - 1)
    return Metric(name, value, value * math.sqrt(variance / n))


def _as_json(metrics: Sequence[Metric]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric in metrics:
        found[metric.name] = metric.value
        if metric.standard_error is not None:
            found[f"{metric.name}_stderr"] = metric.standard_error
    return found
