"""How well a run uses the machine: arithmetic a token needs, what the machine can do at best, memory."""

from __future__ import annotations

import math
import sys
import time

import torch

from clearhead.config import GPTConfig

_MEASURED = 0.5  # seconds that the measurement of the peak takes
_SIZE = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # of the square matrices: large enough to reach the peak


def training_flops(config: GPTConfig) -> int:
    """Floating-point operations of training on one token: forwards, and twice as much backwards.

    6 for each weight that a token is multiplied with, and 12 n_layers C T for attention over a full window
    (Chowdhery et al. 2022, "PaLM", appendix B). What is computed twice to save memory is not counted, and
    attention's masked half is, as is usual for this figure.
    """
    C, L = config.emb_dim, config.n_layers  # noqa: N806
    block = 4 * C * C + 2 * C * config.ff_dim
    return 6 * (L * block + config.vocab_size * C) + 12 * L * C * config.context_length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The floating-point operations a second of a large square matrix product, measured for half a second.

    This is what the machine reaches on the best piece of work for it, in the run's number format and on the threads
    that torch uses here; not the maker's figure. The best of the runs counts.
    """
    size = _SIZE.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = math.inf, time.perf_counter() + _MEASURED
    a @ b
    _wait_for(device)
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        a @ b
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_used(device: torch.device) -> int:
    """The most bytes that this process has had in use so far: of the GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # has no such figure in Python's library
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
