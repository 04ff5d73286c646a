"""Compile functions with Numba, and keep the machine code on disk.

The first run on a machine compiles, which takes some ten seconds for a dtype of weights, and keeps the result in the
user's cache folder. A file of machine code is used only if its checksum is right and if it was made from the same
source by the same version of Numba for the same CPU: anything else is compiled anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numba
from numba import njit, types
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator
from numba.core.ccallback import CFunc

from clearhead.utils.atomic import write_bytes
from clearhead.utils.localization import announce
from clearhead.utils.system import cache_folder, report_lost_cache

kernel = njit(nogil=True, error_model="numpy", _nrt=False)
"""Compile a function that other compiled functions call. It runs without Python's lock and allocates nothing."""

inline = njit(nogil=True, error_model="numpy", _nrt=False, inline="always")
"""The same, and copy it into its caller: one large function compiles faster than many that LLVM inlines later."""


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep its machine code on disk if the disk can be written."""
    compiled = njit(nogil=True, error_model="numpy", _nrt=False)(function)
    compiled._cache = _CodeCache(function)
    return compiled


class Callback:
    """A compiled C function of one table of int64, for libraries that call a function on threads of their own.

    It is compiled when it is first used, and its machine code is kept on disk like an entry's.

    Args:
        function: takes a pointer to the table's first number, and returns nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, table: int) -> None:
        """Call it on this thread with the address of a table."""
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)(table)

    @property
    def address(self) -> int:
        """The address of the machine code."""
        address: int = self._compiled.address
        return address

    @cached_property
    def _compiled(self) -> Any:
        flags: dict[str, Any] = {"nopython": True, "error_model": "numpy"}
        compiled: Any = CFunc(self._function, ((types.CPointer(types.int64),), types.void), locals={}, options=flags)
        compiled._cache = _CodeCache(self._function)
        compiled.compile()
        return compiled


@contextlib.contextmanager
def compile_notice(text: str) -> Iterator[None]:
    """Print `text` on standard error if anything is compiled while the block runs."""
    with event.install_listener("numba:compile", _CompileNotice(text)):
        yield


class _CompileNotice(event.Listener):
    """Print a line when Numba compiles something; code that is loaded from disk causes no event."""

    def __init__(self, text: str) -> None:
        self._text, self._printed = text, False

    def on_start(self, event: Any) -> None:
        if not self._printed:
            self._printed = True
            announce(self._text)
            _check_cache()

    def on_end(self, event: Any) -> None:
        """Do nothing at the end."""


def _check_cache() -> None:
    """Report a cache folder in which nothing can be kept, before the time is spent; create it if it does not exist."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        report_lost_cache(_MACHINE_CODE, error)


_MACHINE_CODE = "compiled code"

# --------------------------------------------------------------------------------------------------------------
# The cache of machine code
# --------------------------------------------------------------------------------------------------------------

_IMPORT = re.compile(r"^from (clearhead[\w.]*) import (.+)$", re.MULTILINE)


KERNELS_VARIABLE = "CLEARHEAD_KERNELS"
"""The environment variable that chooses a variant of the kernels, see `engine/variants.py`."""


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
        if name in sources:
            continue
        source = Path(str(sys.modules[name].__file__)).read_bytes()
        sources[name] = source
        for package, names in _IMPORT.findall(source.decode("utf-8")):
            candidates = [package, *(f"{package}.{word}" for word in re.findall(r"\w+", names))]
            waiting += [candidate for candidate in candidates if candidate in sys.modules]
    digest = hashlib.sha256(f"{numba.__version__} {os.environ.get(KERNELS_VARIABLE, '')}".encode())
    for name in sorted(sources):
        digest.update(hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()[:24]


class _Locator(_CacheLocator):
    """Tell Numba where the machine code of a function is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._stamp = source_digest(function.__module__)
        self._folder = cache_folder() / "compiled" / self._stamp

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> str:
        return "0"  # names of entry functions are unique in a module


class _CodeCacheImpl(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _CodeFiles(IndexDataCacheFile):
    """Numba's index and data files, each with a checksum in front; a damaged file counts as missing."""

    def _load_index(self) -> dict[Any, str]:
        found: tuple[str, dict[Any, str]] | None = _read_checked(Path(self._index_path))
        return found[1] if found is not None and found[0] == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        _write_checked(Path(self._index_path), self._dump((self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        return _read_checked(Path(self._data_path(name)))

    def _save_data(self, name: str, data: Any) -> None:
        _write_checked(Path(self._data_path(name)), self._dump(data))


class _CodeCache(FunctionCache):
    """Numba's cache for one function that never fails: what it cannot read is compiled, what it cannot save is lost."""

    _impl_class = _CodeCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CodeFiles(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:  # a full disk, or a folder that cannot be written
            report_lost_cache(_MACHINE_CODE, error)


def _read_checked(path: Path) -> Any:
    """Return the object in a file, or None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        report_lost_cache(_MACHINE_CODE, error)
        return None
    checksum, data = data[:32], data[32:]
    return pickle.loads(data) if hashlib.sha256(data).digest() == checksum else None


def _write_checked(path: Path, data: bytes) -> None:
    write_bytes(path, hashlib.sha256(data).digest() + data)
