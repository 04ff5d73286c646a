"""Progress reporting: a line that renews itself on a terminal, plain lines elsewhere.

Work that takes less than a second shows nothing. `rich` draws the line; it is imported only when something is shown.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clearhead.utils.localization import localized, localized_phrase

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_PATIENCE = 1.0  # seconds before anything is shown
_REFRESH = 0.2  # seconds between two states of a terminal's line
_PLAIN_EVERY = 30.0  # seconds between plain lines


class Progress:
    """Show the progress of one piece of work on standard error, as a context manager.

    Args:
        what: the work, in a few words.
        total: the number of steps; None if it is not known.
    """

    plain_every = _PLAIN_EVERY

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._note = ""
        self._terminal = sys.stderr.isatty()
        self._live: Live | None = None
        self._started = self._shown = time.monotonic()
        self._wait = _PATIENCE

    def __enter__(self) -> Self:
        return self

    def advance(self, steps: int, note: str = "") -> None:
        """Count finished steps and set the note at the end of the line."""
        self.done += steps
        self.note(note)

    def note(self, text: str) -> None:
        """Set the note at the end of the line."""
        self._note = text
        now = time.monotonic()
        if now - self._shown >= self._wait:
            self._shown, self._wait = now, _REFRESH if self._terminal else self.plain_every
            self._show()

    def say(self, line: str) -> None:
        """Print a line that stays, above the progress line."""
        if self._live is not None:
            self._live.console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if kind is None and time.monotonic() - self._started >= _PATIENCE and (last := self.last_line()):
            self.say(last)

    def last_line(self) -> str:
        """Return the line that stays when the work is done, or "" for none."""
        taken = duration(time.monotonic() - self._started)
        return localized_phrase("{0}: {1} in {2}", self.what, self._note or "done", taken)

    def share(self) -> str:
        """Return how much of the work is done, in words; "" if the total is not known."""
        return f"{100 * self.done / self.total:.1f}%" if self.total else ""

    def _show(self) -> None:
        parts = [part for part in (self.share(), self._note) if part]
        line = localized_phrase("{0}: {1}, {2}" if parts[1:] else "{0}: {1}" if parts else "{0}", self.what, *parts)
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=stderr_console(), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)


class ByteProgress(Progress):
    """Show how many of a number of bytes are done; no line stays."""

    plain_every = 10.0

    def last_line(self) -> str:
        """Return "": the caller reports the result."""
        return ""

    def share(self) -> str:
        """Return the percentage that is done and the total in MB."""
        total = self.total or 0
        return f"{min(100, 100 * self.done // total) if total else 100}% of {total / 1e6:,.0f} MB"


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that a block without countable steps is running: a spinner on a terminal, one line elsewhere."""
    console, what = stderr_console(), localized(what)
    status = console.status(what)
    show = status.start if console.is_terminal else lambda: console.print(what, soft_wrap=True)
    timer = threading.Timer(_PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be about to show; only then can it be stopped
        status.stop()


def stderr_console() -> Console:
    """Return a `rich` console on standard error that prints text as it is given."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def duration(seconds: float) -> str:
    """Return a time in words: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
