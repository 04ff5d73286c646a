"""The threads of a runner: made once, woken for a pass, asleep between passes."""

from __future__ import annotations

import os
import threading
from typing import Any

from clearhead.engine.control import JOB, STOP, new_control
from clearhead.utils.machine_code import BoundCall, CompiledFunction

_WORKER_LOOP = CompiledFunction("clearhead.engine.forward", "worker_loop")
_NUMBER = 3
"""The index of `worker_loop`'s argument that is the pass's number."""


class ThreadPool:
    """The threads of one runner besides the one that calls it.

    Args:
        threads: how many, with the caller.
        phases: the most phases of a pass.
        arguments: what `worker_loop` takes after the pass's number.
    """

    def __init__(self, threads: int, phases: int, arguments: tuple[Any, ...]) -> None:
        self._threads = threads
        self._process = os.getpid()
        self._control = new_control(phases)
        self._calls = self._bind(arguments)
        self._passes = 0
        self._asleep = 0
        self._closing = self._paused = False
        self._change = threading.Condition()
        for thread in range(1, threads):
            threading.Thread(target=self._run_worker, args=(thread,), daemon=True, name=f"clearhead-{thread}").start()

    def run(self) -> None:
        """Run one pass on all threads, and return when it is done."""
        try:
            with self._change:
                self._passes = int(self._control[JOB]) + 1
                if self._asleep:
                    self._change.notify_all()
            call = self._calls[0]
            call.set(_NUMBER, self._passes)
            call()
        finally:
            # A pass that was interrupted before it began, perhaps while it was compiled, leaves its number to the next.
            self._passes = int(self._control[JOB])

    def replace(self, arguments: tuple[Any, ...]) -> None:
        """Give the threads other arrays for the next pass; not while one runs."""
        calls = self._bind(arguments)
        try:
            self._control[STOP] = 1
            with self._change:
                self._paused = True
                self._change.wait_for(lambda: self._asleep == self._threads - 1)
                self._calls = calls
        finally:
            self._paused = False
            self._control[STOP] = 0

    def close(self) -> None:
        """End the threads; not while a pass runs. Returns at once, so that a garbage collector can call it."""
        if self._process != os.getpid():  # a fork has no other threads, and one of them may have held the lock
            return
        self._closing = True
        self._control[STOP] = 1
        with self._change:
            self._change.notify_all()

    def _bind(self, arguments: tuple[Any, ...]) -> list[BoundCall]:
        """Return the call of each thread. The first compiles, so that no thread waits for work meanwhile."""
        threads = range(self._threads)
        return [_WORKER_LOOP.bind(thread, self._threads, self._control, 0, *arguments) for thread in threads]

    def _run_worker(self, thread: int) -> None:
        seen = 0
        while True:
            with self._change:
                self._asleep += 1
                self._change.notify_all()
                # A pass's number is set before it begins, so a thread cannot fall asleep and miss it. A late thread may
                # not have seen a pass that is over, and must wait all the same while the pool is paused.
                while (self._paused or self._passes <= seen) and not self._closing:
                    self._change.wait()
                self._asleep -= 1
                if self._closing:
                    return
                call = self._calls[thread]
            try:
                call.set(_NUMBER, seen)
                seen = call()
            except BaseException:
                with self._change:  # count as asleep for good: it holds no piece, and nobody waits for it
                    self._asleep += 1
                    self._change.notify_all()
                raise
