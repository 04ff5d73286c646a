"""Threads that run one compiled function together, and share out its work as they go.

A token of a small model takes a few hundred microseconds, and a pass has nine phases a layer that must follow one
another. So the threads are made once, wait in compiled code for the next pass, and count in memory instead of asking
the operating system. A thread that waited for a while without work goes to sleep until it is woken.

A phase is cut into pieces. Who is there takes the next piece, and a phase is over when its pieces are done, whoever did
them. So nobody waits for a thread that is late and holds no piece: on a machine that is busy with other programs a
thread may lose its core for thousands of times as long as a phase takes. Which thread does what never changes a result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.engine.llvm import atomic_add, atomic_read, atomic_swap, atomic_write, yield_core
from clearhead.utils.jit import kernel

# Places in the control array, each on a cache line of its own, so that who reads one does not slow who writes another.
JOB = 0
"""The number of the latest pass."""
STOP = 16
"""Not 0 when the threads should leave."""
_FIRST = 32
_LINE = 8
"""A phase has a cache line: how many of its pieces are taken, then how many are done, each plus pass * `_EPOCH`.

A late thread may still be in a pass that is over. It sees the counters of another pass, takes nothing and waits for
nothing.
"""
_EPOCH = 1 << 20

_SPINS = 4000
"""Looks at a counter before the core is offered to others: some microseconds."""
_YIELDS = 2000
"""Offers after which a thread without work goes to sleep: under a millisecond on an idle machine."""
_PATIENCE = 100
"""So many times as long waits one that was woken for a pass, which may have been interrupted before it began."""
_LEAST_WORK = 16384
"""Multiplications that are worth a piece of their own: about a microsecond."""
_MOST_PIECES = 8
"""Of a phase, for each thread."""


def new_control(phases: int) -> npt.NDArray[np.int64]:
    """The control array of passes with so many phases, ready for pass number 1."""
    control = np.zeros(_FIRST + phases * _LINE, np.int64)
    control[_FIRST:] = _EPOCH
    return control


@kernel
def pieces_of(things: int, work: int, threads: int) -> int:
    """Into how many pieces a phase with some things to do, worth so many multiplications, is cut."""
    if threads == 1:
        return 1
    return min(things, threads * min(_MOST_PIECES, max(1, work // (threads * _LEAST_WORK))))


@kernel
def take(control: Any, number: int, phase: int, pieces: int) -> int:
    """The next piece of a phase of pass `number`; -1 where none is left."""
    place = _FIRST + phase * _LINE
    while True:
        taken = atomic_read(control, place)
        piece = taken - number * _EPOCH
        if piece >= pieces or piece < 0:
            return -1
        if atomic_swap(control, place, taken, taken + 1):
            return piece


@kernel
def take_next(control: Any, number: int, phase: int, pieces: int) -> int:
    """The same, after a piece that is done."""
    atomic_add(control, _FIRST + phase * _LINE + 1, 1)
    return take(control, number, phase, pieces)


@kernel
def finish(control: Any, number: int, phase: int, pieces: int) -> None:
    """Returns when all pieces of a phase are done; what was written for them, all can read after."""
    place, goal = _FIRST + phase * _LINE + 1, number * _EPOCH + pieces
    spins = 0
    while atomic_read(control, place) < goal:
        spins += 1
        if spins > _SPINS:
            yield_core()


@kernel
def open_next(control: Any, number: int, phases: int) -> None:
    """Makes the phases ready for pass `number`; by one thread, when the pass before is over."""
    for phase in range(phases):
        atomic_write(control, _FIRST + phase * _LINE, number * _EPOCH)
        atomic_write(control, _FIRST + phase * _LINE + 1, number * _EPOCH)


@kernel
def next_job(control: Any, seen: int, patient: bool) -> int:
    """Waits for the pass after number `seen`; -1 when told to stop or when none came for a while."""
    spins = 0
    while True:
        if atomic_read(control, STOP) != 0:
            return -1
        job = atomic_read(control, JOB)
        if job > seen:
            return job
        spins += 1
        if spins > _SPINS:
            yield_core()
        if spins > _SPINS + _YIELDS * (_PATIENCE if patient else 1):
            return -1
