"""Numbers with units, for people."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """Return a number of bytes with a binary unit: 474.70 MiB."""
    value, unit = float(size), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:,.2f} {unit}"
