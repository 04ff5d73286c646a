"""How far long work has come: a line that renews itself on a terminal, plain lines elsewhere.

What takes less than a second shows nothing.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_PATIENCE = 1.0  # seconds before anything is shown
_RENEW = 0.2  # seconds between two states of a terminal's line
_PLAIN_EVERY = 30.0  # seconds between plain lines


class Progress:
    """Shows one piece of work on standard error, as a context manager.

    Args:
        what: the work, in a few words.
        total: how many steps it has; None where nobody knows.
    """

    plain_every = _PLAIN_EVERY

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._note = ""
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._wait = _PATIENCE

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
        if now - self._shown >= self._wait:
            self._shown, self._wait = now, _RENEW if self._terminal else self.plain_every
            self._show()

    def say(self, line: str) -> None:
        """Prints a line that stays, above the one that renews itself."""
        print(f"\r\x1b[K{line}" if self._terminal else line, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and time.monotonic() - self._started >= _PATIENCE and (last := self.last_line()):
            self.say(last)
        elif self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def last_line(self) -> str:
        """What stays when the work is done; nothing where the line is to go."""
        return f"{self.what}: {self._note or 'done'} in {duration(time.monotonic() - self._started)}"

    def share(self) -> str:
        """How much of the work is done, in words."""
        return f"{100 * self.done / self.total:.1f}%" if self.total else ""

    def _show(self) -> None:
        line = f"{self.what}: {', '.join(part for part in (self.share(), self._note) if part)}"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()


class ByteProgress(Progress):
    """Shows how many of a number of bytes are done; nothing of it stays."""

    plain_every = 10.0

    def last_line(self) -> str:
        """Nothing: what was done is said by whoever did it."""
        return ""

    def share(self) -> str:
        """The part that is done, and of how much."""
        total = self.total or 0
        return f"{min(100, 100 * self.done // total) if total else 100}% of {total / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """A time in words: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
