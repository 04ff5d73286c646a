"""How functions are compiled with Numba, and where the compiled code is kept.

The first run on a machine compiles, which takes some ten seconds a weight format, and keeps the result in the user's
cache folder under a name that the compiled source itself and Numba's version make: changed code never meets
old results.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import event

from clearhead.utils.system import cache_folder

kernel = njit(nogil=True, error_model="numpy", _nrt=False)
"""Compiles a function that other compiled functions call. It holds no lock of Python's and allocates nothing."""

fused = njit(nogil=True, error_model="numpy", _nrt=False, inline="always")
"""The same, and it becomes part of its caller: one function compiles faster than many that are joined afterwards."""


def entry(function: Callable[..., Any]) -> Any:
    """Compiles a function that Python calls, and keeps the compiled code on disk where that can be written."""
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(_folder())
        return njit(nogil=True, error_model="numpy", _nrt=False, cache=True)(function)
    except (OSError, RuntimeError):  # Numba raises RuntimeError where it cannot write
        return njit(nogil=True, error_model="numpy", _nrt=False)(function)
    finally:
        numba.config.CACHE_DIR = before


def _folder() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    package = Path(__file__).parents[1]
    kernels = (package / "tokenizer" / "bulk.py", package / "inference" / "sampling_kernels.py")
    for path in (Path(__file__), *kernels, *sorted((package / "engine").glob("*.py"))):
        digest.update(path.read_bytes())
    folder = cache_folder() / "compiled" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Told(event.Listener):
    """Says once that something is compiled: Numba tells when it begins, and not for what it finds on disk."""

    def __init__(self, what: str) -> None:
        self._what, self._said = what, False

    def on_start(self, event: Any) -> None:
        if not self._said:
            self._said = True
            print(self._what, file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        """Nothing is said at the end."""


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Prints `what` on standard error if anything is compiled meanwhile."""
    with event.install_listener("numba:compile", _Told(what)):
        yield
