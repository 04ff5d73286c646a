"""Show a run's progress: a panel on a terminal, plain lines every half minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clearhead.utils.localization import localized, localized_list
from clearhead.utils.progress import duration, stderr_console

_PLAIN_EVERY = 30.0  # seconds between plain lines
_REFRESH = 0.25  # seconds between two states of the panel
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48


@dataclass(frozen=True, slots=True)
class Status:
    """The progress of a run.

    Attributes:
        step: completed steps.
        loss: smoothed, nats per token; NaN before the first finite one.
        tokens_per_second: of all processes.
        share_of_peak: the share of the machine's peak FLOP/s; None if that was not measured.
        memory: the peak number of bytes in use.
        seconds_left: to the last step.
    """

    step: int
    loss: float
    tokens_per_second: float
    share_of_peak: float | None
    memory: int
    seconds_left: float

    def line(self, steps: int) -> str:
        """Return the status as one line in the user's language."""
        peak = [] if self.share_of_peak is None else [f"{100 * self.share_of_peak:.0f}% of peak"]
        memory = [f"{self.memory / 1e9:.1f} GB"] if self.memory else []
        steps_and_loss = (f"step {self.step:,} of {steps:,}", f"loss {self.loss:.3f}")
        speed, left = f"{self.tokens_per_second:,.0f} tokens/s", f"{duration(self.seconds_left)} left"
        return localized_list((*steps_and_loss, speed, *peak, *memory, left))


class Display:
    """Show the status of a run on standard error.

    Args:
        steps: the number of steps of the run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._console = stderr_console()
        self._live: Live | None = None
        self._status: Status | None = None
        self._losses: deque[float] = deque(maxlen=4096)
        self._shown = self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if kind is None and self._status is not None:
            taken = localized(f"{duration(time.monotonic() - self._started)} in all")
            self.say(localized(", ").join((self._status.line(self.steps), taken)), verbatim=True)

    def update(self, status: Status) -> None:
        """Record the status after a step; show it if the last time is a while ago."""
        self._status = status
        if math.isfinite(status.loss):
            self._losses.append(status.loss)
        now = time.monotonic()
        if now - self._shown >= (_REFRESH if self._live else _PLAIN_EVERY):
            self._shown = now
            if self._live is not None:
                self._live.update(self._panel(status), refresh=True)
            else:
                print(localized("training: {0}").format(status.line(self.steps)), file=sys.stderr, flush=True)

    def say(self, line: str, verbatim: bool = False) -> None:
        """Print a line that stays, in the user's language unless it is `verbatim`."""
        self._console.print(line if verbatim else localized(line), soft_wrap=True)

    def _panel(self, now: Status) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=self.steps, completed=now.step, width=_SPARK_WIDTH),
            f"{100 * now.step / self.steps:.1f}%",
            localized(f"step {now.step:,} of {self.steps:,}"),
            localized(f"{duration(now.seconds_left)} left"),
        )
        below = Table.grid(padding=(0, 1))
        peak = "" if now.share_of_peak is None else localized(f"{100 * now.share_of_peak:.0f}% of peak")
        below.add_row(
            Text(sparkline(list(self._losses), _SPARK_WIDTH), style="cyan"),
            localized(f"loss {now.loss:.3f}"),
            localized(f"{now.tokens_per_second:,.0f} tokens/s"),
            peak,
            f"{now.memory / 1e9:.1f} GB" if now.memory else "",
        )
        return Group(bar, below)


def sparkline(values: list[float], width: int) -> str:
    """Return the values, all finite, as small bars: the means of groups, between the least and the greatest."""
    if not values:
        return ""
    count = min(width, len(values))
    groups = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    return "".join(_SPARKS[round((mean - low) / ((high - low) or 1) * (len(_SPARKS) - 1))] for mean in means)
