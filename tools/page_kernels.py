"""Assemble the page's WebAssembly kernels: `src/clearhead/web/js/kernels.wat` to `kernels.wasm` beside it.

    python tools/page_kernels.py

Only who changes the kernels needs this, and `wasmtime` for it: the assembled module is in the repository.
"""

from __future__ import annotations

from pathlib import Path

from wasmtime import wat2wasm

SOURCE = Path(__file__).parents[1] / "src/clearhead/web/js/kernels.wat"


def assemble(source: str) -> bytes:
    """Return a module without its custom sections, which contain only names."""
    module = bytes(wat2wasm(source))
    kept, at = module[:8], 8  # magic number and version
    while at < len(module):
        start, kind = at, module[at]
        at, size = _unsigned(module, at + 1)
        at += size
        kept += module[start:at] if kind else b""
    return kept


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Read a LEB128 number; return the offset after it and its value."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return at, value


if __name__ == "__main__":
    SOURCE.with_suffix(".wasm").write_bytes(assemble(SOURCE.read_text(encoding="utf-8")))
