"""Compile functions with Numba, to object files that `machine_code.py` keeps and runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import codegen, config
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic
from numba.np import numpy_support
from numba.np.arrayobj import populate_array

from clearhead.utils.call_table import RESULTS, Signature
from clearhead.utils.machine_code import SYMBOL, TABLE, CompiledFunction, ObjectCode, new_target_machine

kernel = njit(nogil=True, error_model="numpy", _nrt=False)
"""Compile a function that other compiled functions call. It runs without Python's lock and allocates nothing."""

inline = njit(nogil=True, error_model="numpy", _nrt=False, inline="always")
"""The same, and copy it into its caller: one large function compiles faster than many that LLVM inlines later."""


def entry(function: Callable[..., Any]) -> CompiledFunction:
    """Compile a function that Python calls, and keep its machine code on disk if the disk can be written."""
    return CompiledFunction(function.__module__, function.__name__, function)


_DESTRUCTOR = "NRT_MemInfo_call_dtor"  # of memory that an array owns; Numba's runtime


def compiles_for(target: tuple[str, str, str]) -> bool:
    """Return whether Numba compiles for this platform, CPU and features."""
    name = config.CPU_NAME or binding.get_host_cpu_name()
    features = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return (binding.get_process_triple(), name, features) == target


def compile_function(function: Callable[..., Any], signature: tuple[Signature, ...]) -> ObjectCode:
    """Compile a function for arguments of these types."""
    results: list[str] = []
    run = function if signature == TABLE else _on_table(function, signature, results)
    flags: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy"}
    if signature != TABLE:  # what a callback calls to read its table needs Numba's reference counts
        flags["_nrt"] = False
    compiled: Any = CFunc(run, ((types.CPointer(types.int64),), types.void), locals={}, options=flags)
    with global_compiler_lock:
        found = compiled._compile_uncached()
        found.library.finalize()
        module = binding.parse_assembly(found.library.get_llvm_str())
    _leave_only_caller(module, found.fndesc.mangled_name)
    return ObjectCode(results, _declared(module), new_target_machine().emit_object(module))


def _declared(module: Any) -> list[str]:
    """Return the names that a module uses and does not define."""
    everything = [*module.functions, *module.global_variables]
    return [one.name for one in everything if one.is_declaration and not one.name.startswith("llvm.")]


def _leave_only_caller(module: Any, native: str) -> None:
    """Add a C function that calls a native one with a table, and remove from a module what it does not need.

    Numba's own C function reports errors through Python, which needs functions that only Numba has. Ours raise none.
    """
    caller = f"""
        declare i32 @{native}(ptr, ptr, ptr)
        define void @{SYMBOL}(ptr %table) {{
            %result = alloca ptr
            %error = alloca ptr
            %status = call i32 @{native}(ptr %result, ptr %error, ptr %table)
            ret void
        }}"""
    module.link_in(binding.parse_assembly(caller))
    for one in module.functions:
        if not one.is_declaration and one.name != SYMBOL:
            one.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, binding.create_pass_builder(new_target_machine(), binding.create_pipeline_tuning_options()))
    if [name for name in _declared(module) if name.startswith("NRT_")] == [_DESTRUCTOR]:
        # Nothing here allocates, so no array owns memory that would be freed. A process would otherwise need Numba's
        # runtime to load the code, or compile it anew.
        module.link_in(binding.parse_assembly(f"define void @{_DESTRUCTOR}(ptr %owner) {{ ret void }}"))


def _on_table(
    function: Callable[..., Any], signature: tuple[Signature, ...], results: list[str]
) -> Callable[..., None]:
    """Return a function that takes its arguments from a table and leaves its results there; `results` tells which."""
    compiled = kernel(function)
    read, write = _reader(types.Tuple([_type(one) for one in signature])), _writer(results)

    def run(table: Any) -> None:
        write(table, compiled(*read(table)))

    return run


def _type(signature: Signature) -> types.Type:
    """Return Numba's type for a signature."""
    kind, *rest = signature
    if kind == "array":
        dtype, dimensions, order, writable, aligned = rest
        element = numpy_support.from_dtype(np.dtype(dtype))
        return types.Array(element, dimensions, order, readonly=not writable, aligned=aligned)
    if kind == "number":
        return numpy_support.from_dtype(np.dtype(rest[0]))
    if kind == "none":
        return types.none
    elements = [_type(one) for one in rest[-1]]
    if kind == "tuple":
        return types.Tuple(elements)
    named = getattr(importlib.import_module(rest[0]), rest[1])
    return types.NamedTuple(elements, named)


_I64 = ir.IntType(64)


def _reader(arguments: types.Type) -> Any:
    @intrinsic
    def read(typing_context: Any, table: Any) -> Any:
        """Return the arguments in a table, a tuple."""

        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _Reader(context, builder, values[0]).build(arguments)

        return arguments(table), code

    return read


class _Reader:
    """Write the code that builds values from the numbers of a table, one after another."""

    def __init__(self, context: Any, builder: Any, table: Any) -> None:
        self._context, self._builder, self._table = context, builder, table
        self._next = RESULTS

    def build(self, kind: types.Type) -> Any:
        """Write the code for a value of a type, and return the value."""
        context, builder = self._context, self._builder
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [self.build(one) for one in kind.types])
        if isinstance(kind, types.NoneType):
            return context.get_dummy_value()
        if isinstance(kind, types.Array):
            element = context.get_data_type(kind.dtype)
            array = context.make_array(kind)(context, builder)
            start = builder.inttoptr(self._number(), element.as_pointer())
            shape, strides = ([self._number() for _ in range(kind.ndim)] for _ in range(2))
            size = _I64(context.get_abi_sizeof(element))
            populate_array(array, data=start, shape=shape, strides=strides, itemsize=size, meminfo=None)
            return array._getvalue()
        value, wanted = self._number(), context.get_value_type(kind)
        if isinstance(wanted, ir.IntType):
            return value if wanted.width == 64 else builder.trunc(value, wanted)
        whole = ir.IntType(8 * context.get_abi_sizeof(wanted))
        return builder.bitcast(value if whole.width == 64 else builder.trunc(value, whole), wanted)

    def _number(self) -> Any:
        number = self._builder.load(self._builder.gep(self._table, [_I64(self._next)]))
        self._next += 1
        return number


def _result_kind(kind: types.Type) -> str:
    """Return what a number of a type is in a table of int64, as `call_table.read_results` knows it."""
    if isinstance(kind, types.Float):
        return "float64"
    if kind == types.boolean:
        return "bool"
    return "int64" if kind.signed else "uint64"


def _writer(results: list[str]) -> Any:
    @intrinsic
    def write(typing_context: Any, table: Any, result: Any) -> Any:
        """Write a function's result to a table: nothing, a number, or a tuple of numbers."""
        several = isinstance(result, types.BaseTuple)
        kinds = list(result.types) if several else [] if result == types.none else [result]
        results[:] = [*(["tuple"] if several else []), *map(_result_kind, kinds)]

        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            for index, kind in enumerate(kinds):
                value = builder.extract_value(values[1], index) if several else values[1]
                if isinstance(kind, types.Float):
                    value = builder.bitcast(
                        builder.fpext(value, ir.DoubleType()) if kind.bitwidth < 64 else value, _I64
                    )
                elif value.type.width < 64:
                    signed = isinstance(kind, types.Integer) and kind.signed
                    value = (builder.sext if signed else builder.zext)(value, _I64)
                builder.store(value, builder.gep(values[0], [_I64(index)]))
            return context.get_dummy_value()

        return types.void(table, result), code

    return write
