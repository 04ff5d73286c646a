"""Being asked to stop: by Ctrl-C, or by the SIGTERM that a cluster sends before it takes the machine away."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether somebody asked the run to stop. The step that is running is finished first.

    Attributes:
        asked: true from the first signal on. A second Ctrl-C interrupts at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C again stops at once.", file=sys.stderr, flush=True)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Listens for the signals while the block runs, where this is the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
