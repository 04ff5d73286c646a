"""What a CPU can do, for reports: its name, and the vector instructions that decide about speed."""

from __future__ import annotations

from pathlib import Path

_DECISIVE = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16",
)  # fmt: skip


def cpu_name() -> str:
    """Return the CPU's name; "" if the system does not tell."""
    return _field("model name")


def cpu_features() -> list[str]:
    """Return which of the features that decide about speed the CPU has."""
    flags = (_field("flags") or _field("Features")).split()
    return [name for name in _DECISIVE if name in flags]


def _field(name: str) -> str:
    """Return what Linux says of the CPU; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
