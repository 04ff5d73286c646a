"""How far a long piece of work with weights has come: a bar on a terminal, plain lines elsewhere.

What takes less than a second shows nothing.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

_PATIENCE = 1.0  # seconds before anything is shown
_PLAIN_EVERY = 10.0  # seconds between plain lines


class ByteProgress:
    """Shows on standard error how many of a number of bytes are done. A context manager.

    Attributes:
        what: the work, such as `Loading gpt2`.
        total: how many bytes there are.
        done: how many of them are done.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._last = time.monotonic()
        self._shown = False

    def __enter__(self) -> ByteProgress:
        """Starts the clock."""
        return self

    def advance(self, n_bytes: int) -> None:
        """Counts bytes that are done, and shows it when it is time."""
        self.done += n_bytes
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        wait = (0.1 if terminal else _PLAIN_EVERY) if self._shown else _PATIENCE
        if now - self._last < wait:
            return
        self._last, self._shown = now, True
        share = f"{100 * self.done / self.total:.0f}%" if self.total else "100%"
        line = f"{self.what}: {share} of {self.total / 1e6:,.0f} MB"
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clears the bar; on a terminal nothing is left of it."""
        if self._shown and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
