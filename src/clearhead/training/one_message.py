"""Print the error that ends a run of several processes once.

Each process learns the error from the one that failed (`distributed.py`). torchrun ends all of them as soon as one
exits, so a process that exits before the message is printed may silence it: the others wait until it is printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from clearhead.training.distributed import open_store

PATIENCE = 5.0
"""Seconds that a process leaves to each one before it: one that has not begun to print by then has probably died."""
_ANSWER = timedelta(
    seconds=25
)  # of the store, and of a process that is printing; torchrun's own patience is 30 seconds
_PRINTING, _PRINTED = "error being printed", "error printed"


def print_once(show: Callable[[], None], patience: float = PATIENCE) -> None:
    """Call `show` in one process of this run; in the others, return when it is done.

    The first process calls it or, if that has died, the lowest one that lives. Without torchrun, whose store the
    processes agree by, each calls it.
    """
    rank = int(os.environ.get("RANK", "0"))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when another process has ended
    store = None
    # The store may be gone with torchrun.
    with contextlib.suppress(RuntimeError, ValueError):
        store = open_store(_ANSWER)
        if store is not None:
            if rank and _wait(store, timedelta(seconds=rank * patience)):
                return
            if store.add(_PRINTING, 1) > 1 and _wait(store, _ANSWER):
                return
    show()
    if store is not None:
        with contextlib.suppress(RuntimeError):
            store.set(_PRINTED, "yes")


def _wait(store: dist.Store, patience: timedelta) -> bool:
    """Wait for another process to print; return whether it did."""
    try:
        store.wait([_PRINTED], patience)
    except dist.DistStoreError:
        return False
    return True
