"""Stop a run on Ctrl-C, or on the SIGTERM that a cluster sends before it takes the machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from clearhead.utils.localization import announce


class StopRequest:
    """Whether the run was asked to stop. The step in progress is completed first.

    Attributes:
        received: true after the first signal. A second Ctrl-C interrupts at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        if number == signal.SIGINT:
            announce("\nstopping after this step; Ctrl-C again stops at once.")


@contextlib.contextmanager
def handle_stop_signals() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM while the block runs, if this is the main thread."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
