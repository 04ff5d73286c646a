"""How far long work has come: a line that renews itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_PLAIN_EVERY = 30.0  # seconds between plain lines


class Progress:
    """Shows one piece of work on standard error, as a context manager.

    Args:
        what: the work, in a few words.
        total: how many steps it has; None where nobody knows.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._note = ""
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def advance(self, steps: int, note: str = "") -> None:
        """Counts steps that are done; `note` stands behind the time left."""
        self.done += steps
        self.note(note)

    def note(self, text: str) -> None:
        """Changes what stands at the end of the line."""
        self._note = text
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else _PLAIN_EVERY):
            self._shown = now
            self._show()

    def say(self, line: str) -> None:
        """Prints a line that stays, above the one that renews itself."""
        print(f"\r\x1b[K{line}" if self._terminal else line, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and time.monotonic() - self._started >= 1:
            self.say(f"{self.what}: {self._note or 'done'} in {duration(time.monotonic() - self._started)}")
        elif self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        share = f"{100 * self.done / self.total:.1f}%" if self.total else ""
        line = f"{self.what}: {', '.join(part for part in (share, self._note) if part)}"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """A time in words: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
