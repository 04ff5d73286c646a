"""Read and write files of `torch.save`. Only this format needs PyTorch, which is imported when it is used.

The files are pickles. `weights_only=True` builds tensors and plain containers and refuses anything that would
run code.

A file is a zip without compression: `data.pkl`, a pickle of everything but the tensors' data, in which a tensor
is a call of `torch._utils._rebuild_tensor_v2` with the key of its storage; `data/KEY`, the data of each
storage; and `version`. Source: "Serialized file format for torch.save" in PyTorch's notes on serialization. It
is written here because `torch.save` needs every tensor in memory at once.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.text import printable, type_of
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, widen_bfloat16

if TYPE_CHECKING:
    import torch


class PyTorchFile:
    """A file of named tensors that `torch.save` wrote, mapped into memory unless it is in the format before 1.6.

    Attributes:
        path: the file.
        tensors: every tensor inside.
        contents: everything in the file, as `torch.load` returns it.
        aliases: for each tensor that is the same memory as an earlier one, the name of that one.

    Raises:
        WeightsError: if the file is damaged, would run code, or has no named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_data(path)
        self.contents, self._mapped = _load(path)
        self._values = _state_dict(path, self.contents)
        self.tensors: dict[str, TensorInfo] = {}
        self.aliases: dict[str, str] = {}
        seen: dict[tuple[int, tuple[int, ...], str], str] = {}
        for name, tensor in self._values.items():
            _check_data(path, name, tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in NUMPY_TYPES:
                raise WeightsError(
                    f"{path} stores {name!r} as {dtype}, a dtype that Clearhead does not read; "
                    "convert it to float32, float16 or bfloat16 first."
                )
            info = self.tensors[name] = TensorInfo(tuple(tensor.shape), dtype)
            first = seen.setdefault((tensor.data_ptr(), info.shape, dtype), name)
            if first != name and info.size:
                self.aliases[name] = first

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, a view of the file if that is mapped; bfloat16 is widened to float32."""
        import torch

        tensor = self._values[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return widen_bfloat16(tensor.view(torch.uint16).numpy())
        return tensor.numpy()

    def remap(self) -> PyTorchFile:
        """Map the same file again; return this object if it is not mapped."""
        return PyTorchFile(self.path) if self._mapped else self


def _load(path: Path) -> tuple[Any, bool]:
    """Return what a file contains, and whether its data is mapped."""
    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError:  # the format before PyTorch 1.6 is not a zip and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} was not opened: it has more than tensors and plain values, and opening it could run code "
            f"({_first_sentence(error)}); ask for the model as safetensors, or as a plain state dict."
        ) from None
    except Exception as error:  # PyTorch's reader raises many exceptions for damaged files
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a seek to before the start of the file
            raise WeightsError(f"{path} could not be read ({error.strerror or error}).") from None
        missing = _missing_bytes(path)
        if missing > 0:
            raise WeightsError(
                f"{path} is cut short: at least {missing:,} bytes are missing at its end; download it again."
            ) from None
        raise WeightsError(
            f"{path} is not a PyTorch file, or is cut short or damaged ({_first_sentence(error)}); download it again."
        ) from None


_ITEM_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Double": 8, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}


class _Inert(dict[Any, Any]):
    """Replaces every class and function in a pickle from which only the storages are needed."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...


class _StorageCounter(pickle.Unpickler):
    """Finds the storages that a pickle names, and their sizes, without running its code."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> _Inert:
        self.sizes[pid[2]] = pid[4] * _ITEM_BYTES.get(pid[1].__name__.removesuffix("Storage"), 1)
        return _Inert()


def _missing_bytes(path: Path) -> int:
    """Return how many bytes a file lacks at least, by the storages that its pickle names; 0 if that is unknown."""
    try:
        with path.open("rb") as file:
            entry = file.read(30)  # a zip's first entry is the pickle: a header, a name, padding
            name = file.read(int.from_bytes(entry[26:28], "little"))
            file.seek(int.from_bytes(entry[28:30], "little"), os.SEEK_CUR)
            if not entry.startswith(b"PK\x03\x04") or not name.endswith(b"data.pkl"):
                return 0
            counter = _StorageCounter(file)
            counter.load()
            return file.tell() + sum(counter.sizes.values()) - path.stat().st_size
    except Exception:  # a damaged pickle can raise anything
        return 0


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return printable(text[0].strip().rstrip("."))[:200] if text else type(error).__name__


def _state_dict(path: Path, contents: Any) -> Mapping[str, torch.Tensor]:
    """Return the mapping of names to tensors: the file's contents, or its `model` or `state_dict`."""
    import torch

    candidates = [contents]
    if isinstance(contents, Mapping):
        candidates += [contents[key] for key in ("model", "state_dict", "model_state_dict") if key in contents]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(v, torch.Tensor) for v in candidate.values())
        ):
            return {str(name): tensor for name, tensor in candidate.items()}
    raise WeightsError(
        f"{path} contains {_describe(contents)}; a mapping of names to tensors, as torch.save(model.state_dict(), …) "
        "writes it, was expected."
    )


def _check_data(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor's values are in the file, each at its own offset.

    Raises:
        WeightsError: if it has no values, is sparse or nested, or repeats stored values (which could fill any memory).
    """
    import torch

    if tensor.is_meta:
        raise WeightsError(
            f"{path} stores {name!r} without values (a meta tensor); save the state dict of a model whose weights "
            "are loaded."
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else "sparse"
        raise WeightsError(
            f"{path} stores {name!r} as a {kind} tensor; make it an ordinary one first, for instance with to_dense()."
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path} stores {name!r} as a tensor of {tensor.numel():,} values that repeats fewer stored ones; "
            "save its clone() instead."
        )


def _describe(contents: Any) -> str:
    if isinstance(contents, Mapping):
        keys = ", ".join(repr(str(key)) for key in list(contents)[:5])
        return f"a mapping with the keys {keys}" if keys else "an empty mapping"
    return type_of(contents)


class _Storage:
    """The data of a tensor in a file that is being written: what the pickle says about it."""

    def __init__(self, info: TensorInfo, key: str) -> None:
        self.info, self.key = info, key


class _Tensor:
    """A tensor in a file that is being written; its pickle is that of a contiguous torch.Tensor."""

    def __init__(self, storage: _Storage) -> None:
        self._storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        shape = self._storage.info.shape
        strides = tuple(int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
        return _rebuild_tensor_v2, (self._storage, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    """Writes a storage as the key of its data in the zip."""

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        import torch

        kinds = {
            "float32": torch.FloatStorage,
            "float16": torch.HalfStorage,
            "bfloat16": torch.BFloat16Storage,
            "bool": torch.BoolStorage,
        }
        return ("storage", kinds[value.info.dtype], value.key, "cpu", value.info.size)


_ALIGNMENT = 64  # bytes; storages begin at multiples, so that mapped ones can be used in place


def write_pytorch(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    data: Iterable[tuple[str, np.ndarray]],
    *,
    same: Mapping[str, str] | None = None,
    under: str | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Write a file that `torch.load` opens, with one tensor in memory at a time.

    Args:
        path: the file; it is written in place, so give a temporary name.
        tensors: the tensors of the file, in order: `float32`, `float16`, `bfloat16` or `bool`.
        data: the same names in the same order, except those in `same`; each with a contiguous array of that shape
            and of the type that `NUMPY_TYPES` has for its dtype.
        same: names whose tensors are the memory of another name.
        under: the key of the mapping in the file, if it is not the whole file.
        beside: the other keys then, with values that pickle can write and `weights_only=True` opens.
    """
    same = same or {}
    keys = {name: str(number) for number, name in enumerate(name for name in tensors if name not in same)}
    storages = {name: _Storage(tensors[name], key) for name, key in keys.items()}
    state = OrderedDict((name, _Tensor(storages[same.get(name, name)])) for name in tensors)
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(state if under is None else {under: state, **(beside or {})})
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", pickled.getbuffer())
        _add(archive, file, "byteorder", memoryview(b"little"))
        expected = iter(keys)
        for name, array in data:
            due = next(expected)
            info = tensors[due]
            if due != name or array.shape != info.shape or array.dtype != NUMPY_TYPES[info.dtype]:
                raise ValueError(f"{name} {array.dtype} {array.shape} does not follow: {due} {info} is due")
            numbers = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            _add(archive, file, f"data/{keys[name]}", numbers)
        if (left := next(expected, None)) is not None:
            raise ValueError(f"no data for {left}")
        _add(archive, file, "version", memoryview(b"3\n"))


def _add(archive: zipfile.ZipFile, file: io.BufferedWriter, name: str, contents: memoryview) -> None:
    """Add an entry to the zip, padded so that its contents begin at a multiple of `_ALIGNMENT`."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    entry.file_size = contents.nbytes  # zipfile decides by it whether the entry needs the fields for large ones
    large = contents.nbytes * 1.05 > zipfile.ZIP64_LIMIT
    before = file.tell() + 30 + len(entry.filename) + (20 if large else 0) + 4  # its header and that of the padding
    padding = -before % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(entry, "w") as out:
        out.write(contents)
