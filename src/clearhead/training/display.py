"""What a run shows on a terminal while it goes on; elsewhere, plain lines now and then."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clearhead.utils.progress import duration

_PLAIN_EVERY = 30.0  # seconds between plain lines
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands.

    Attributes:
        step: steps done.
        loss: smoothed, nats a token; NaN before there was one that is a number.
        tokens_per_second: of all processes.
        share_of_peak: of the arithmetic that the machine can do at best; None where it was not measured.
        memory: bytes in use at most.
        seconds_left: to the last step.
    """

    step: int
    loss: float
    tokens_per_second: float
    share_of_peak: float | None
    memory: int
    seconds_left: float

    def words(self, steps: int) -> str:
        """In one line."""
        peak = "" if self.share_of_peak is None else f", {100 * self.share_of_peak:.0f}% of peak"
        memory = f", {self.memory / 1e9:.1f} GB" if self.memory else ""
        return (
            f"step {self.step:,} of {steps:,}, loss {self.loss:.3f}, {self.tokens_per_second:,.0f} tokens/s"
            f"{peak}{memory}, {duration(self.seconds_left)} left"
        )


class Display:
    """Shows where a run stands, on standard error."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._standing: Standing | None = None
        self._losses: deque[float] = deque(maxlen=4096)
        self._shown = self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if kind is None and self._standing is not None:
            self.say(f"{self._standing.words(self.steps)}, {duration(time.monotonic() - self._started)} in all")

    def update(self, standing: Standing) -> None:
        """Takes note of a step; shows it if the last time is a while ago."""
        self._standing = standing
        if math.isfinite(standing.loss):
            self._losses.append(standing.loss)
        now = time.monotonic()
        if now - self._shown >= (0.25 if self._live else _PLAIN_EVERY):
            self._shown = now
            if self._live is not None:
                self._live.update(self._panel(standing), refresh=True)
            else:
                print(f"training: {standing.words(self.steps)}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, soft_wrap=True)

    def _panel(self, now: Standing) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=self.steps, completed=now.step, width=_SPARK_WIDTH),
            f"{100 * now.step / self.steps:.1f}%",
            f"step {now.step:,} of {self.steps:,}",
            f"{duration(now.seconds_left)} left",
        )
        below = Table.grid(padding=(0, 1))
        peak = "" if now.share_of_peak is None else f"{100 * now.share_of_peak:.0f}% of peak"
        below.add_row(
            Text(sparkline(list(self._losses), _SPARK_WIDTH), style="cyan"),
            f"loss {now.loss:.3f}",
            f"{now.tokens_per_second:,.0f} tokens/s",
            peak,
            f"{now.memory / 1e9:.1f} GB" if now.memory else "",
        )
        return Group(bar, below)


def sparkline(values: list[float], width: int) -> str:
    """The values, all finite, as little bars: the mean of each piece, between the least and the greatest."""
    if not values:
        return ""
    count = min(width, len(values))
    pieces = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(piece) / len(piece) for piece in pieces]
    low, high = min(means), max(means)
    return "".join(_SPARKS[round((mean - low) / ((high - low) or 1) * (len(_SPARKS) - 1))] for mean in means)
