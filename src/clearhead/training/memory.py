"""Memory of a process that trains: freed memory is used again, the collector spared, running out explained."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

from clearhead.errors import TrainingError
from clearhead.utils.system import is_out_of_memory

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names for its settings
_PAD = 64 * 2**20  # bytes; the heap grows in steps of this size


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, if its C library is glibc.

    glibc returns large blocks to the system at once and asks for new ones in the next step: the system fills them with
    zeros, page by page, some ten thousand pages a step for a small model. The setting holds for the whole process and
    cannot be undone, so a program decides on it, not a function of the library.

    Returns:
        Whether it could be set; False with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older versions accept at most 32 MiB for the second.
    kept = mallopt(_MMAP_THRESHOLD, 2**31 - 1) or mallopt(_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, _PAD))


def exempt_loaded_objects() -> None:
    """Exempt all objects that exist now from Python's garbage collector: the modules of torch are half a million.

    A step makes thousands of objects, so the collector runs several times a second, and looks through those modules
    each time: 3% of a step of a small model. Reference counts free what is not needed, as before. This holds for the
    whole process, so it is a program that decides on it.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def memory_errors_explained() -> Iterator[None]:
    """Turn out-of-memory errors of the block, of the machine or of a device, into `TrainingError`.

    Raises:
        TrainingError: if memory runs out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "there is not enough memory for this run. Set a smaller micro_batch_size (gradients are then accumulated "
            "over parts of the batch), or recompute = true; a model that is too large itself can be spread over "
            'several devices with parallel = "shard" (torchrun).'
        ) from None
