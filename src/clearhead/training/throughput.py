"""How well a run uses the machine: FLOPs of a token, the machine's measured peak, memory."""

from __future__ import annotations

import math
import sys
import time

import torch

from clearhead.config import GPTConfig

_MEASURED = 0.5  # seconds that the measurement of the peak takes
_SIZE = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # of the square matrices: large enough to reach the peak


def training_flops(config: GPTConfig) -> int:
    """Return the floating-point operations of training on one token: the forward pass, and twice that backwards.

    6 for each weight that a token is multiplied with, and 12 n_layers C T for attention over a full window
    (Chowdhery et al. 2022, "PaLM", appendix B). Recomputation to save memory is not counted, and attention's masked
    half is, as is usual for this figure.
    """
    C, L = config.emb_dim, config.n_layers  # noqa: N806
    block = 4 * C * C + 2 * C * config.ff_dim
    return 6 * (L * block + config.vocab_size * C) + 12 * L * C * config.context_length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large square matrix product.

    This is what the machine reaches on the most favourable work, in the run's precision and on the threads that torch
    uses here, not the manufacturer's figure. The best repetition counts.

    Args:
        device: the device.
        dtype: the type of the matrices.
    """
    size = _SIZE.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = math.inf, time.perf_counter() + _MEASURED
    a @ b
    synchronize(device)
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_used(device: torch.device) -> int:
    """Return the peak number of bytes that this process has used: of the GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # Python's library has no such figure there
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
