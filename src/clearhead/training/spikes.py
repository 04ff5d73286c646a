"""Sudden jumps of the loss or of the gradient's norm: seen, and by choice left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_MEMORY = 100  # steps that the running mean and variance look back on
_BEFORE_IT_JUDGES = 20  # steps
_DEVIATIONS = 6.0  # above the mean that make a spike; of normal noise, one step in a billion
_LEAST_RISE = 0.1  # and at least this share above the mean: a quiet stretch must not make noise into spikes
PATIENCE = 10
"""Steps in a row that may be left out; after so many the run is broken and not the batch."""


@dataclass
class _Running:
    """An exponentially weighted mean and variance."""

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def is_above(self, value: float) -> bool:
        if self.seen < _BEFORE_IT_JUDGES:
            return False
        return value > self.mean + max(_DEVIATIONS * math.sqrt(self.variance), _LEAST_RISE * abs(self.mean))

    def add(self, value: float) -> None:
        self.seen += 1
        share = max(1 / self.seen, 1 / _MEMORY)
        difference = value - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference * difference)


class Spikes:
    """Watches two numbers, step by step, and says what is out of the ordinary.

    A value is a spike when it is six standard deviations, and a tenth, above the mean of about the last 100
    steps, or is no finite number. A spike does not enter the mean.

    Attributes:
        in_a_row: how many steps in a row were spikes.
    """

    def __init__(self) -> None:
        self._loss, self._norm = _Running(), _Running()
        self.in_a_row = 0

    def look(self, loss: float, norm: float) -> str:
        """What is odd about a step, in words; nothing where it is ordinary."""
        words = []
        for name, value, running in (("loss", loss, self._loss), ("gradient norm", norm, self._norm)):
            if not math.isfinite(value):
                words.append(f"the {name} is {value}")
            elif running.is_above(value):
                words.append(f"the {name} is {value:.3g}, after a mean of {running.mean:.3g}")
        if words:
            self.in_a_row += 1
            if self.in_a_row < PATIENCE:
                return " and ".join(words)
            # So many together are a new level; it is judged from here on.
            self._loss, self._norm = _Running(), _Running()
            return " and ".join(words)
        self.in_a_row = 0
        self._loss.add(loss)
        self._norm.add(norm)
        return ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"loss": vars(self._loss), "norm": vars(self._norm), "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self._loss, self._norm = _Running(**state["loss"]), _Running(**state["norm"])
        self.in_a_row = state["in_a_row"]
