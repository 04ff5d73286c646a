"""Run a compiled kernel on the threads that torch uses.

A thread of our own would compete for a core with torch's, which waits for its next work in a loop: with libgomp, a
kernel on two such threads takes longer than on one. So the kernel is given to torch's team itself, by libgomp's own
entry; where torch uses another library, one thread computes it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearhead.training.cpu.head_kernels import HEAD_KERNELS
from clearhead.training.cpu.kernels import (
    BFLOAT16,
    ENTRIES,
    FIRST_ADDRESS,
    FIRST_NUMBER,
    FLOAT32,
    KERNELS,
)
from clearhead.training.cpu.update_kernels import UPDATE_KERNELS
from clearhead.utils.machine_code import Callback, compile_notice

_PIECE = 1 << 14  # numbers from which on a piece is worth taking
_PIECES_A_THREAD = 4
TYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
"""The types that kernels compute with, and the number by which they know each."""


def run_kernel(kernel: Callback, shape: tuple[int, int], tensors: Sequence[Tensor | None], numbers: list[int]) -> None:
    """Compute a kernel on all threads of torch.

    Args:
        kernel: one of `kernels`.
        shape: its rows and columns.
        tensors: contiguous, on the CPU, in the order of the kernel's docstring; None for one that is left out.
        numbers: likewise.
    """
    pieces = count_pieces(shape)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    unused = [0] * (FIRST_NUMBER - FIRST_ADDRESS - len(tensors))
    filled = [0, pieces, *shape, *addresses, *unused, *numbers]
    table = np.array(filled + [0] * (ENTRIES - len(filled)), np.int64)
    _compile(kernel)
    team = _team() if pieces > 1 else None
    if team is None:
        kernel(table.ctypes.data)
    else:
        team(kernel.address, table.ctypes.data, min(torch.get_num_threads(), pieces), 0)


def count_pieces(shape: tuple[int, int]) -> int:
    """Return into how many pieces `run_kernel` divides rows and columns."""
    threads = torch.get_num_threads()
    most = _PIECES_A_THREAD * threads if threads > 1 else 1
    return max(1, min(shape[0], shape[0] * shape[1] // _PIECE, most))


@cache
def _compile(kernel: Callback) -> None:
    """Compile a kernel with the others of its module."""
    with compile_notice("Compiling kernels for training, once on this machine …"):
        for other in next(kernels for kernels in (KERNELS, HEAD_KERNELS, UPDATE_KERNELS) if kernel in kernels):
            assert other.address


@cache
def _team() -> Any:
    """Return libgomp's function that calls another on each thread of a team; None if torch does not use it."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            team = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        team.restype = None
        return team
    return None


def float_bits(number: float) -> int:
    """Return the bits of a float32, by which a kernel receives it."""
    return int(np.float32(number).view(np.int32))
