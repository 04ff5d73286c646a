"""Distribute work over processes and return the results in the order of the work.

A worker is a new Python process that reads its work from standard input and writes results to standard output. It ends
when its input ends, and so with the process that started it, however that one ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from clearhead.data.ray_workers import RayCluster, map_on_ray
from clearhead.errors import ClearheadError, TrainingError

_T = TypeVar("_T")

_START = "import sys; sys.path[:] = {path!r}; from clearhead.data.workers import worker_loop; worker_loop()"


def distribute(
    work: Callable[..., Any],
    items: Iterable[_T],
    arguments: Callable[[_T], tuple[Any, ...]],
    where: int | RayCluster,
) -> Iterator[tuple[_T, Any]]:
    """Yield each item with the result of the work on it, in the order of the items, from processes or a Ray cluster.

    Args:
        work, items, arguments: as `map_in_processes`.
        where: a number of processes of this machine, or a Ray cluster.
    """
    if isinstance(where, RayCluster):
        return map_on_ray(work, items, arguments, where)
    return map_in_processes(work, items, arguments, where)


def map_in_processes(
    work: Callable[..., Any], items: Iterable[_T], arguments: Callable[[_T], tuple[Any, ...]], processes: int
) -> Iterator[tuple[_T, Any]]:
    """Yield each item with the result of the work on it, in the order of the items.

    At most two items for each process are in progress at a time, so a slow consumer of the results slows down the work
    and memory stays bounded.

    Args:
        work: the function; it is sent to each process once, by pickle.
        items: consumed while the work proceeds.
        arguments: maps an item to the function's arguments, which are sent by pickle.
        processes: the number of processes; with one, the work is done in this process.

    Raises:
        ClearheadError: if the work raises it, in the order of the items.
        TrainingError: if a process ends unexpectedly.
    """
    if processes == 1:
        for item in items:
            yield item, work(*arguments(item))
        return
    workers = [_Worker(work) for _ in range(processes)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def do(item: _T) -> Any:
        worker = idle.get()
        try:
            return worker.call(arguments(item))
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(processes)  # each thread waits for one process
    pending: deque[tuple[_T, Future[Any]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(do, item)))
            if len(pending) >= 2 * processes:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for worker in workers:
            worker.end()
        pool.shutdown(cancel_futures=True)


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=[str(Path(p).absolute()) for p in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._work: Callable[..., Any] | None = work
        self._ended = False

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """Return the result of the work; raise what the work raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._work is not None:
                pickle.dump(self._work, self._process.stdin, pickle.HIGHEST_PROTOCOL)
                self._work = None
            pickle.dump(arguments, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            result = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            status = "was stopped" if self._ended else f"ended with status {self._process.wait()}"
            raise TrainingError(
                f"a process that encodes text {status}, perhaps because memory ran out; run the same command again to "
                "resume. With --processes fewer run at once."
            ) from None
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """Stop the process."""
        self._ended = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not sent cannot be sent any more
                pipe.close()  # type: ignore[union-attr]


def worker_loop() -> None:
    """Run in a worker process: call the work with the arguments that arrive until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    requests: BinaryIO = sys.stdin.buffer
    # What the work prints must not get between the results.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        work = pickle.load(requests)
        while True:
            answer: Any
            arguments = pickle.load(requests)
            try:
                answer = work(*arguments)
            except (ClearheadError, OSError, MemoryError) as error:
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return
