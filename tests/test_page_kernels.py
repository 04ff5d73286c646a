"""The page's WebAssembly kernels, run by wasmtime, against NumPy; and the assembled module against its source."""

from __future__ import annotations

import ctypes
import runpy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from clearhead.web import export

TOOLS = Path(__file__).parents[1] / "tools"
MODULE = Path(export.__file__).parent / "js" / "kernels.wasm"
Floats = npt.NDArray[np.float32]
sizes = st.integers(1, 100)


class Machine:
    """The module with a memory of its own; arrays go in at multiples of 16 bytes."""

    def __init__(self) -> None:
        engine = wasmtime.Engine()
        self.store = wasmtime.Store(engine)
        kind = wasmtime.MemoryType(wasmtime.Limits(16, None))
        self.memory = wasmtime.Memory(self.store, kind)
        module = wasmtime.Module(engine, MODULE.read_bytes())
        self.exports = wasmtime.Instance(self.store, module, [self.memory]).exports(self.store)
        pointer = ctypes.cast(self.memory.data_ptr(self.store), ctypes.c_void_p).value
        assert pointer is not None
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * (16 << 16)).from_address(pointer))
        self.next = 0

    def put(self, array: npt.NDArray[np.generic]) -> int:
        """Copy an array into the memory and return where it begins."""
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        start, self.next = self.next, self.next + -(-data.size // 16) * 16
        self.bytes[start : start + data.size] = data
        return start

    def floats(self, start: int, count: int) -> Floats:
        """Return a view of floats in the memory."""
        return self.bytes[start : start + 4 * count].view(np.float32)

    def call(self, name: str, *given: float) -> None:
        """Call a kernel."""
        kernel = self.exports[name]
        assert isinstance(kernel, wasmtime.Func)
        kernel(self.store, *given)


def test_the_module_is_what_its_source_says() -> None:
    assemble = runpy.run_path(str(TOOLS / "page_kernels.py"))["assemble"]
    assert MODULE.read_bytes() == assemble(MODULE.with_suffix(".wat").read_text(encoding="utf-8"))


@given(rows=sizes, width=sizes, seed=st.integers(0, 99))
def test_product_multiplies_what_export_stores(rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, x = rng.normal(size=(rows, width)).astype(np.float32), rng.normal(size=width).astype(np.float32)
    machine = Machine()
    table, data = export.pack({"matrix": matrix})
    assert table[0]["dtype"] == "int8"
    stored = machine.put(np.frombuffer(data, np.uint8))
    at, out, row = machine.put(x), machine.put(np.zeros(rows + 1, np.float32)), machine.put(np.zeros(width, np.float32))
    machine.floats(out, rows + 1)[rows] = 7
    machine.call("product", at, stored, stored + rows * width, rows, width, out)
    expected = export.rounded({"matrix": matrix})["matrix"]
    assert np.allclose(machine.floats(out, rows), expected @ x, atol=1e-4)
    assert machine.floats(out, rows + 1)[rows] == 7, "nothing is written beyond the end"
    groups = -(-width // export.GROUP)
    machine.call("unpack", stored + (rows - 1) * width, stored + rows * width + 2 * (rows - 1) * groups, width, row)
    assert np.array_equal(machine.floats(row, width), expected[-1])


@given(count=sizes, width=sizes, extra=st.integers(0, 9), seed=st.integers(0, 99))
def test_dots_and_blend_take_rows_that_lie_apart(count: int, width: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, width + extra)).astype(np.float32)
    x, factors = rng.normal(size=width).astype(np.float32), rng.random(count).astype(np.float32)
    machine = Machine()
    stored, at, weights = machine.put(rows), machine.put(x), machine.put(factors)
    dots, blended = machine.put(np.zeros(2 * count, np.float32)), machine.put(np.zeros(width, np.float32))
    machine.call("dots", at, stored, width + extra, count, width, 0.5, dots, 2)
    assert np.allclose(machine.floats(dots, 2 * count)[::2], 0.5 * rows[:, :width] @ x, atol=1e-4)
    machine.call("blend", weights, stored, width + extra, count, width, blended)
    assert np.allclose(machine.floats(blended, width), factors @ rows[:, :width], atol=1e-4)
