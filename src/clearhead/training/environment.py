"""Record what a run ran on and with: versions, the machine, the command."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from clearhead.training.distributed import Processes
from clearhead.training.precision import dtype_name, float32_products
from clearhead.version import __version__


def environment(processes: Processes, dtype: torch.dtype) -> dict[str, Any]:
    """Return the facts about the machine and the programs that may explain a difference between two runs."""
    values: dict[str, Any] = {
        "clearhead": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": sys.modules["numpy"].__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "device": device_name(processes.device),
        "products": dtype_name(dtype),
        "command": sys.argv,
    }
    if processes.device.type == "cuda":
        values["cuda"] = torch.version.cuda
        values["float32_products"] = float32_products()
    return values


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_processor()}, {_threads()}"
    return device.type


def cpu_features() -> str:
    """Return the processor's name, its vector instructions as torch uses them, and the number of threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    more = sorted(words & {"avx512_bf16", "avx512_vnni", "amx_bf16"})
    return ", ".join([_processor(), capability, *more, _threads()])


def _threads() -> str:
    count = torch.get_num_threads()
    return "1 thread" if count == 1 else f"{count} threads"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
