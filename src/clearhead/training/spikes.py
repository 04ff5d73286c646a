"""Detect sudden jumps of the loss or of the gradient norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, TypedDict

from clearhead.utils.json_files import Condition, Count

_MEMORY = 100  # steps over which the running mean and variance average
_WARM_UP = 20  # steps before anything counts as a spike
_DEVIATIONS = 6.0  # above the mean that make a spike; with normal noise, one step in a billion
_LEAST_RISE = 0.1  # and at least this share above the mean: after quiet steps noise must not count as a spike
MOST_IN_A_ROW = 10
"""Consecutive steps that may be skipped; more mean that the run has failed, not the batch."""


_Variance = Annotated[float, Condition(lambda number: number >= 0, "a number from 0 on")]


@dataclass
class _Running:
    """An exponentially weighted mean and variance."""

    mean: float = 0.0
    variance: _Variance = 0.0
    seen: Count = 0

    def is_above(self, value: float) -> bool:
        if self.seen < _WARM_UP:
            return False
        return value > self.mean + max(_DEVIATIONS * math.sqrt(self.variance), _LEAST_RISE * abs(self.mean))

    def add(self, value: float) -> None:
        self.seen += 1
        share = max(1 / self.seen, 1 / _MEMORY)
        difference = value - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference * difference)


class SpikeState(TypedDict):
    """The detector in a checkpoint: the statistics of the loss and of the gradient norm, and the spikes in a row."""

    loss: _Running
    norm: _Running
    in_a_row: Count


class SpikeDetector:
    """Compare the loss and the gradient norm of each step with those of the steps before.

    A value is a spike if it is six standard deviations, and a tenth, above the mean of about the last 100 steps, or if
    it is NaN or infinite. A spike does not enter the mean.

    Attributes:
        in_a_row: the number of consecutive spikes so far.
    """

    def __init__(self) -> None:
        self._loss, self._norm = _Running(), _Running()
        self.in_a_row = 0

    def check(self, loss: float, norm: float) -> str:
        """Return a description of the anomaly of a step, or "" if there is none."""
        words = []
        for name, value, running in (("loss", loss, self._loss), ("gradient norm", norm, self._norm)):
            if not math.isfinite(value):
                words.append(f"the {name} is {value}")
            elif running.is_above(value):
                words.append(f"the {name} is {value:.3g}, after a mean of {running.mean:.3g}")
        if not words:
            self.in_a_row = 0
            self._loss.add(loss)
            self._norm.add(norm)
            return ""
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:  # this many in a row are a new level to compare with
            self._loss, self._norm = _Running(), _Running()
        return " and ".join(words)

    def state(self) -> SpikeState:
        """Return the state for a checkpoint."""
        return {"loss": replace(self._loss), "norm": replace(self._norm), "in_a_row": self.in_a_row}

    def restore(self, state: SpikeState) -> None:
        """Restore what `state` returned."""
        self._loss, self._norm = replace(state["loss"]), replace(state["norm"])
        self.in_a_row = state["in_a_row"]
