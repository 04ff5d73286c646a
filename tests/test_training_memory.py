"""Memory of a process that trains: what a step frees is there for the next one, and the collector is spared."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource

from clearhead.training.memory import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        large = bytearray(b"x") * (40 * 2**20)
        del large
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
assert keep_freed_memory()
faults()
print(fresh, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_freed_memory_is_kept() -> None:
    """Counted in pages that the system has to bring, in a process of its own, since it holds for the whole process."""
    ran = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    fresh, kept = map(int, ran.stdout.split())
    assert kept < fresh / 10


def test_what_is_loaded_is_not_looked_through_by_the_collector() -> None:
    script = """
import gc
import clearhead.cli.train
from clearhead.training.memory import exempt_loaded_objects
before = len(gc.get_objects())
exempt_loaded_objects()
assert before > 10_000 and len(gc.get_objects()) < before / 100, (before, len(gc.get_objects()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
