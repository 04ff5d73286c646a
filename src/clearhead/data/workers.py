"""Work that is shared among processes, whose results come back in the order of the work.

A process is a fresh Python that reads what to do from its standard input and writes what it found to its standard
output. It ends when its input ends, and so with the process that started it, however that one ended.
"""

from __future__ import annotations

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

from clearhead.errors import ClearheadError, TrainingError

_T = TypeVar("_T")

_START = "import sys; sys.path[:] = {path!r}; from clearhead.data.workers import serve; serve()"


def results(
    work: Callable[..., Any], items: Iterable[_T], arguments: Callable[[_T], tuple[Any, ...]], processes: int
) -> Iterator[tuple[_T, Any]]:
    """Each item with what the work finds for it, in the order of the items.

    At most two items for each process are on their way at a time, so that a slow reader of the results holds up
    the work and memory stays bounded.

    Args:
        work: what is called; sent to each process once, by pickle.
        items: taken as the work goes on.
        arguments: of an item, for the work; sent by pickle.
        processes: how many share the work; with one, it is done here.

    Raises:
        ClearheadError: that the work raised, in the order of the items.
        TrainingError: where a process ended that should not have.
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
    """A process that does the work."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=[str(Path(p).absolute()) for p in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._work: Callable[..., Any] | None = work
        self._ended = False

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """What the work finds; raises what it raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._work is not None:
                pickle.dump(self._work, self._process.stdin, pickle.HIGHEST_PROTOCOL)
                self._work = None
            pickle.dump(arguments, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            found = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            status = "was stopped" if self._ended else f"ended with status {self._process.wait()}"
            raise TrainingError(
                f"a process that encodes text {status}, perhaps for want of memory; run the same command again, it "
                "goes on from where it was. With --processes fewer run at once."
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        self._ended = True
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """What a process does: calls the work that it is sent until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    requests: BinaryIO = sys.stdin.buffer
    # What the work prints must not come between the results.
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
