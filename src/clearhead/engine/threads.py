"""Threads that run one compiled function together, and wait for each other inside it.

A token of a small model takes a few hundred microseconds, and a pass has nine meeting points a layer. So the threads
are made once, wait in compiled code for the next pass, and meet at a counter in memory instead of a lock of
the operating system's. A thread that waited for a while without work goes to sleep until it is woken.
"""

from __future__ import annotations

from typing import Any

from clearhead.compiling import kernel
from clearhead.engine.llvm import atomic_add, atomic_read, give_way

# Places in the control array, each on a cache line of its own, so that who reads one does not slow who writes another.
ARRIVED = 0
"""How often a thread has come to a barrier, over all barriers."""
JOB = 16
"""The number of the latest pass."""
STOP = 32
"""Not 0 when the threads should leave."""
CONTROL_SIZE = 48

_SPINS = 4000
"""Looks at a counter before the core is offered to others: some microseconds."""
_YIELDS = 2000
"""Offers after which a thread without work goes to sleep: under a millisecond on an idle machine."""


@kernel
def barrier(control: Any, threads: int) -> None:
    """Returns when all threads have come here; what each wrote before, all can read after."""
    if threads == 1:
        return
    ticket = atomic_add(control, ARRIVED, 1)
    goal = (ticket // threads + 1) * threads
    spins = 0
    while atomic_read(control, ARRIVED) < goal:
        spins += 1
        if spins > _SPINS:
            give_way()


@kernel
def next_job(control: Any, seen: int, patient: bool) -> int:
    """Waits for the pass after number `seen`; -1 when told to stop or, if not patient, when none came for a while."""
    spins = 0
    while True:
        if atomic_read(control, STOP) != 0:
            return -1
        job = atomic_read(control, JOB)
        if job > seen:
            return job
        spins += 1
        if spins > _SPINS:
            give_way()
        if spins > _SPINS + _YIELDS and not patient:
            return -1
