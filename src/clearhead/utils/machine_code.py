"""Run compiled functions from the machine code that is kept on disk; Numba is imported only to compile anew.

The first run on a machine compiles, which takes half a minute or so for a dtype of weights, and keeps the result in the
user's cache folder: an object file, as a compiler writes it, which LLVM's linker (in llvmlite) loads in milliseconds.
An object file is used only if its checksum is right and if it was made from the same source by the same version of
Numba for the same CPU: anything else is compiled anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from clearhead.utils.atomic import write_bytes
from clearhead.utils.call_table import RESULTS, Signature, describe, read_results
from clearhead.utils.localization import announce
from clearhead.utils.system import cache_folder, report_lost_cache

KERNELS_VARIABLE = "CLEARHEAD_KERNELS"
"""The environment variable that chooses a variant of the kernels, see `engine/variants.py`."""

SYMBOL = "clearhead_call"
"""The name of the compiled function in its object file."""
_MACHINE_CODE = "compiled code"
_LOCK = threading.RLock()
"""Held while code is compiled or loaded, so that threads that need the same function wait for one of them."""


class ObjectCode(NamedTuple):
    """A compiled function that takes the address of a table (see `call_table.py`).

    Attributes:
        results: what it leaves in the table.
        needs: the names that the object file expects the process to have.
        binary: the object file.
    """

    results: list[str]
    needs: list[str]
    binary: bytes


class LoadedCode(NamedTuple):
    """Code that can run: its address, what it leaves in the table, and what must live as long as it does."""

    address: int
    call: Callable[[int], None]
    results: list[str]
    engine: Any


class CompiledFunction:
    """A function that Python calls and Numba compiles, for each combination of types that it is called with.

    Args:
        module: the name of the module that defines it.
        name: its name there. The module is not imported before something must be compiled.
        function: the function itself; None to find it in its module, where `jit.entry` was applied to it.
    """

    def __init__(self, module: str, name: str, function: Callable[..., Any] | None = None) -> None:
        self._module, self._name, self._function = module, name, function
        self._folder = cache_folder() / "compiled"
        self._codes: dict[tuple[Signature, ...], LoadedCode] = {}

    @property
    def function(self) -> Callable[..., Any]:
        """The Python function; its module is imported if it was not yet."""
        if self._function is None:
            self._function = getattr(importlib.import_module(self._module), self._name).function
        return self._function

    def __call__(self, *arguments: Any) -> Any:
        """Run it; it holds no lock of Python's meanwhile."""
        return self.bind(*arguments)()

    def bind(self, *arguments: Any) -> BoundCall:
        """Return a call with these arguments, which can be repeated at little cost."""
        numbers, places, signature = [0] * RESULTS, [], []
        for argument in arguments:
            places.append(len(numbers))
            signature.append(describe(argument, numbers))
        return BoundCall(self.code(tuple(signature)), numbers, places, arguments)

    def code(self, signature: tuple[Signature, ...]) -> LoadedCode:
        """Return the machine code for arguments of these types: from memory, from disk, or compiled now."""
        found = self._codes.get(signature)
        if found is None:
            with _LOCK:
                found = self._codes.get(signature)
                if found is None:
                    found = self._codes[signature] = self._load(signature) or self._compile(signature)
        return found

    def _path(self, signature: tuple[Signature, ...]) -> Path:
        key = hashlib.sha256(repr((signature, target(), _numba_settings())).encode()).hexdigest()[:24]
        return self._folder / source_digest(self._module) / f"{self._name}-{key}.code"

    def _load(self, signature: tuple[Signature, ...]) -> LoadedCode | None:
        found = read_checked(self._path(signature))
        return None if found is None else _link(found)

    def _compile(self, signature: tuple[Signature, ...]) -> LoadedCode:
        _notify()
        from clearhead.utils import jit

        found = jit.compile_function(self.function, signature)
        if jit.compiles_for(target()):  # a settings file of Numba's may name another CPU
            try:
                write_checked(self._path(signature), found)
            except OSError as error:  # a full disk, or a folder that cannot be written
                report_lost_cache(_MACHINE_CODE, error)
        loaded = _link(found)
        assert loaded is not None, f"{self._name} needs {found.needs}"
        return loaded


class BoundCall:
    """A call of compiled code with its arguments, which live as long as it does."""

    def __init__(self, code: LoadedCode, numbers: list[int], places: list[int], arguments: tuple[Any, ...]) -> None:
        self._code, self._places, self._arguments = code, places, arguments
        self._table = (ctypes.c_int64 * len(numbers))(*numbers)
        self._address = ctypes.addressof(self._table)

    def __call__(self) -> Any:
        """Run it once."""
        self._code.call(self._address)
        return read_results(self._code.results, self._table)

    def set(self, index: int, number: int) -> None:
        """Give another number for argument `index`, which is an int."""
        self._table[self._places[index]] = number


class Callback:
    """A compiled C function of one table of int64, for libraries that call a function on threads of their own.

    It is compiled when it is first used, and its machine code is kept on disk like any other's.

    Args:
        function: takes a pointer to the table's first number, and returns nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._compiled = CompiledFunction(function.__module__, function.__name__, function)

    def __call__(self, table: int) -> None:
        """Call it on this thread with the address of a table."""
        self._compiled.code(TABLE).call(table)

    @property
    def address(self) -> int:
        """The address of the machine code."""
        return self._compiled.code(TABLE).address


TABLE: tuple[Signature, ...] = (("table",),)
"""The signature of a function that takes the address of a table itself."""


# --------------------------------------------------------------------------------------------------------------
# What is said about compiling
# --------------------------------------------------------------------------------------------------------------

_notices: list[list[str]] = []
"""The texts of the blocks that run now; one that was printed is gone."""
_announced: set[str] = set()
"""What this process has printed."""


@contextlib.contextmanager
def compile_notice(text: str) -> Iterator[None]:
    """Print `text` on standard error if anything is compiled while the block runs; a process prints each text once."""
    waiting = [text]
    _notices.append(waiting)
    try:
        yield
    finally:
        _notices.remove(waiting)


def _notify() -> None:
    """Say that compiling begins, and report a cache folder that cannot be written."""
    said = False
    for waiting in _notices:
        while waiting:
            text = waiting.pop()
            if text not in _announced:
                _announced.add(text)
                announce(text)
            said = True
    if not said:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        report_lost_cache(_MACHINE_CODE, error)


# --------------------------------------------------------------------------------------------------------------
# What code is made from, and for
# --------------------------------------------------------------------------------------------------------------

_IMPORT = re.compile(r"^from (clearhead[\w.]*) import (.+)$", re.MULTILINE)
_PACKAGE = Path(__file__).parents[1]


@cache
def source_digest(module: str) -> str:
    """Return a hash of a module's source, the clearhead modules that it imports, theirs in turn, and Numba's version.

    A variant of the kernels that was chosen by hand counts too, as it is compiled from the same source.

    Imports inside functions and blocks do not count: nothing that is compiled comes from there.
    """
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources or (path := _source(name)) is None:
            continue
        sources[name] = path.read_bytes()
        for package, names in _IMPORT.findall(sources[name].decode("utf-8")):
            waiting += [package, *(f"{package}.{word}" for word in re.findall(r"\w+", names))]
    digest = hashlib.sha256(f"{_numba_version()} {os.environ.get(KERNELS_VARIABLE, '')}".encode())
    for name in sorted(sources):
        digest.update(hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()[:24]


def _source(module: str) -> Path | None:
    """Return the file of a module, without importing it; None if there is no such module."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return None if file is None else Path(file)
    base = _PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def _numba_version() -> str:
    """Return what Numba's own file says of its version, without importing it."""
    spec = importlib.util.find_spec("numba")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("_version.py").read_text(encoding="utf-8")


def _numba_settings() -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_"))


@cache
def target() -> tuple[str, str, str]:
    """Return the platform, the CPU's name and its features, as LLVM says them, that code is compiled for here.

    NUMBA_CPU_NAME=generic stands for a CPU without any features; NUMBA_CPU_FEATURES lists them one by one.
    """
    from llvmlite import binding

    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name.lower() == "generic" else binding.get_host_cpu_features().flatten()
    return binding.get_process_triple(), name, features


def new_target_machine() -> Any:
    """Return a generator of machine code for this process. An engine that is made with it deletes it in the end."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    triple, name, features = target()
    machine = binding.Target.from_triple(triple)
    position = "static" if machine.name.startswith("x86") else "pic" if machine.name.startswith("ppc") else "default"
    return machine.create_target_machine(name, features, 3, position, "jitdefault", jit=True)


def _link(code: ObjectCode) -> LoadedCode | None:
    """Make an object file part of this process; return None if the process lacks something that it needs."""
    from llvmlite import binding

    # An engine makes the process's own names known to LLVM.
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), new_target_machine())
    if any(not binding.address_of_symbol(name) for name in code.needs):
        # Numba adds names of its own, such as those of a vector library.
        _ = importlib.import_module("numba.core.registry").cpu_target.target_context
        if any(not binding.address_of_symbol(name) for name in code.needs):
            return None
    engine.add_object_file(binding.ObjectFileRef.from_data(code.binary))
    engine.finalize_object()
    address = engine.get_function_address(SYMBOL)
    return LoadedCode(address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), code.results, engine)


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def read_checked(path: Path) -> ObjectCode | None:
    """Return the code in a file, or None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        report_lost_cache(_MACHINE_CODE, error)
        return None
    checksum, data = data[:32], data[32:]
    if hashlib.sha256(data).digest() != checksum:
        return None
    header, _, binary = data.partition(b"\n")
    return ObjectCode(**json.loads(header), binary=binary)


def write_checked(path: Path, code: ObjectCode) -> None:
    """Write code to a file, with a checksum in front; the folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {name: value for name, value in code._asdict().items() if name != "binary"}
    data = json.dumps(header).encode() + b"\n" + code.binary
    write_bytes(path, hashlib.sha256(data).digest() + data)
