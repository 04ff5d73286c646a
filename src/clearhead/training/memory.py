"""The memory that a step frees and the next one asks for again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names for its settings
_PAD = 64 * 2**20  # bytes; the heap grows in pieces of this size


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, where its C library is glibc.

    glibc hands large pieces back to the system at once, and takes fresh ones in the next step: the system fills them
    with zeros, page by page, some ten thousand pages a step of a small model. Kept, they are there. It holds for the
    whole process and cannot be taken back, so a program decides on it, not a function of the library.

    Returns:
        Whether it could be set; False on a system with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older versions take no more than 32 MiB for the second.
    kept = mallopt(_MMAP_THRESHOLD, 2**31 - 1) or mallopt(_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, _PAD))
