"""The memory in which threads count, see `threads.py`: how it is laid out, and how long it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Indices of the control array, each on its own cache line, so that reading one does not slow writing another.
JOB = 0
"""The number of the latest pass."""
STOP = 16
"""Not 0 when the threads should leave."""
FIRST = 32
LINE = 8
"""A phase has a cache line: how many pieces are taken, then how many are done, each plus the pass times `EPOCH`.

A late thread may still be in a pass that is over. It sees the counters of another pass, takes nothing and waits for
nothing.
"""
EPOCH = 1 << 20


def phases_of(n_layers: int) -> int:
    """Return the greatest number of phases that a pass has, see `forward.py`."""
    return 9 * n_layers + 7


def new_control(phases: int) -> npt.NDArray[np.int64]:
    """Return the control array for passes with this many phases, ready for pass number 1."""
    control = np.zeros(FIRST + phases * LINE, np.int64)
    control[FIRST:] = EPOCH
    return control
