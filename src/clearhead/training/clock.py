"""Track throughput, the time left and a smoothed loss."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TypedDict

from clearhead.utils.json_files import Count

_MEMORY = 50  # steps over which both averages run


class ClockState(TypedDict):
    """The clock in a checkpoint: the smoothed loss, and how many losses it averages."""

    loss: float | None
    seen: Count


class Clock:
    """Track throughput and a smoothed loss over the steps of this session.

    Attributes:
        loss: the smoothed training loss; None before the first finite one.
        seconds, tokens: of a step, smoothed.
        left: the number of steps to go.
        steps: the number of steps of this session.
    """

    def __init__(self) -> None:
        self.loss: float | None = None
        self.seconds = 0.0
        self.tokens = 0.0
        self.left = 0
        self._seen = 0  # losses that the smoothed one averages
        self.steps = 0
        self._started = self._last = 0.0

    def start(self, steps: int) -> None:
        """Begin the first of `steps` steps now."""
        self.left, self._started = steps, time.monotonic()
        self._last = self._started

    def tick(self, loss: float, tokens: int) -> None:
        """Record a completed step."""
        now = time.monotonic()
        self.steps += 1
        self.left -= 1
        # The first step compiles and warms up: it says nothing about the next ones.
        share = 1.0 if self.steps <= 2 else max(1 / self.steps, 1 / _MEMORY)
        self.seconds += share * (now - self._last - self.seconds)
        self.tokens += share * (tokens - self.tokens)
        if math.isfinite(loss):
            self._seen += 1
            before = loss if self.loss is None else self.loss
            self.loss = before + (loss - before) * max(1 / self._seen, 1 / _MEMORY)
        self._last = now

    def state(self) -> ClockState:
        """Return the state for a checkpoint: a resumed run shows the loss that it would have shown."""
        return {"loss": self.loss, "seen": self._seen}

    def restore(self, state: ClockState) -> None:
        """Restore what `state` returned."""
        self.loss, self._seen = state["loss"], state["seen"]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the steps' time."""
        before = time.monotonic()
        yield
        self._last += time.monotonic() - before

    @property
    def tokens_per_second(self) -> float:
        """The tokens per second of all processes together."""
        return self.tokens / self.seconds

    @property
    def running(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started
