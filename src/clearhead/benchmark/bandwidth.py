"""Measure the memory's bandwidth, the limit of decoding: each token reads every weight once."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from clearhead.utils.jit import entry

SIZE = 512 << 20
"""Bytes that are read: far more than a processor's caches hold."""


@entry
def _sum(numbers: Any) -> Any:
    total = np.uint64(0)
    for i in range(len(numbers)):
        total += numbers[i]
    return total


def read_speeds(threads: int, runs: int, size: int = SIZE) -> list[float]:
    """Sum an array several times, and return the speed of each run in bytes per second.

    Args:
        threads: how many share the work, each with its own part of the array.
        runs: how often.
        size: of the array, in bytes.
    """
    numbers = np.full(size // 8, 3, np.uint64)  # written, so that the memory is really there
    expected = 3 * len(numbers)
    pieces = np.array_split(numbers, threads)
    _sum(numbers[:1])
    speeds = []
    for _ in range(runs):
        found = [0] * threads
        start_line = threading.Barrier(threads)
        spans = [(0.0, 0.0)] * threads

        def work(
            thread: int, found: list[int] = found, line: threading.Barrier = start_line, spans: list[Any] = spans
        ) -> None:
            line.wait()
            start = time.perf_counter()
            found[thread] = int(_sum(pieces[thread]))
            spans[thread] = start, time.perf_counter()

        crew = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
        assert sum(found) == expected
        speeds.append(numbers.nbytes / (max(end for _, end in spans) - min(start for start, _ in spans)))
    return speeds
