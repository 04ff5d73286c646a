"""How the threads divide the phases of a pass, in compiled code.

A token of a small model takes a few hundred microseconds, and a pass has nine phases per layer that must follow one
another. So the threads are made once (see `pool.py`), wait in compiled code for the next pass, and count in memory
instead of asking the operating system. A thread that has waited for a while goes to sleep until it is woken.

A phase is cut into pieces. Any thread takes the next piece, and a phase is over when its pieces are done, whoever did
them. So nobody waits for a late thread that holds no piece: on a busy machine a thread may lose its core for thousands
of times as long as a phase takes. Which thread does what never changes a result.
"""

from __future__ import annotations

from typing import Any

from clearhead.engine.control import EPOCH, FIRST, JOB, LINE, STOP
from clearhead.engine.llvm import atomic_add, atomic_read, atomic_swap, atomic_write, yield_core
from clearhead.utils.jit import kernel

_SPINS = 4000
"""Reads of a counter before the core is yielded: some microseconds."""
_YIELDS = 2000
"""Yields after which a thread without work goes to sleep: under a millisecond on an idle machine."""
_PATIENCE = 100
"""A thread that was woken for a pass waits this many times as long: the pass may be interrupted before it begins."""
_LEAST_WORK = 16384
"""The multiplications that a piece should have at least: about a microsecond."""
_MOST_PIECES = 8
"""Pieces of a phase for each thread, at most."""
MOST_UNEVEN_PIECES = 32
"""The same for a phase whose items differ in work: small pieces let the threads finish together."""


@kernel
def pieces_of(items: int, work: int, threads: int, most: int = _MOST_PIECES) -> int:
    """Return how many pieces a phase is cut into, from its number of items and of multiplications.

    Pieces have the same number of items, as far as that is possible, so that threads of one speed finish together:
    24 items become 12 pieces of two rather than 16 of one or two.
    """
    if threads == 1 or items <= 1:
        return 1
    pieces = min(items, threads * min(most, max(1, work // (threads * _LEAST_WORK))))
    size = (items + pieces - 1) // pieces
    return (items + size - 1) // size


@kernel
def take(control: Any, number: int, phase: int, pieces: int) -> int:
    """Take the next piece of a phase of pass `number`; return -1 if none is left."""
    index = FIRST + phase * LINE
    while True:
        taken = atomic_read(control, index)
        piece = taken - number * EPOCH
        if piece >= pieces or piece < 0:
            return -1
        if atomic_swap(control, index, taken, taken + 1):
            return piece


@kernel
def take_next(control: Any, number: int, phase: int, pieces: int) -> int:
    """Count a piece as done, and take the next one."""
    atomic_add(control, FIRST + phase * LINE + 1, 1)
    return take(control, number, phase, pieces)


@kernel
def finish(control: Any, number: int, phase: int, pieces: int) -> None:
    """Wait until all pieces of a phase are done; then everything that they wrote can be read."""
    index, goal = FIRST + phase * LINE + 1, number * EPOCH + pieces
    spins = 0
    while atomic_read(control, index) < goal:
        spins += 1
        if spins > _SPINS:
            yield_core()


@kernel
def open_next(control: Any, number: int, phases: int) -> None:
    """Reset the phases for pass `number`; one thread does it when the pass before is over."""
    for phase in range(phases):
        atomic_write(control, FIRST + phase * LINE, number * EPOCH)
        atomic_write(control, FIRST + phase * LINE + 1, number * EPOCH)


@kernel
def next_job(control: Any, seen: int, patient: bool) -> int:
    """Wait for the pass after number `seen`; return -1 to stop, or if none came for a while."""
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
