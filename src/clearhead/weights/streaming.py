"""Read a file that is larger than the memory, one tensor after another, and release what was read.

Pages of a memory map that were read count as memory of the process for as long as the map exists. A conversion reads
every byte, so in the end the whole file would count. Here the file is mapped anew from time to time, and an old map
goes with the last array that refers to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from clearhead.errors import WeightsError
from clearhead.weights.tensors import TensorFile

_BYTES_PER_MAP = 192 * 2**20  # bytes that are read before the file is mapped anew


class StreamingReader:
    """Reads a file's tensors for a plan that runs once; it is a `steps.TensorReader`.

    An array stays valid as long as something refers to it; changing it in memory does not affect later reads.
    """

    def __init__(self, file: TensorFile) -> None:
        self._path, self._file, self._bytes_read = file.path, file.remap(), 0
        self._tensors = file.tensors
        self._state = _state(file.path)
        self._n_layers = getattr(getattr(file, "config", None), "n_layers", 1)
        if hasattr(file.read, "layer"):
            self.layer = self._layer

    def __call__(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor, as the file's own `read` does."""
        return self._file_for(self._tensors[name].nbytes).read(name)

    def _layer(self, name: str, layer: int) -> npt.NDArray[Any]:
        file = self._file_for(self._tensors[name].nbytes // self._n_layers)
        values: npt.NDArray[Any] = file.read.layer(name, layer)  # type: ignore[attr-defined]
        return values

    def _file_for(self, n_bytes: int) -> TensorFile:
        """Return the file for reading `n_bytes` more, mapped anew if they are too many for this map."""
        if self._bytes_read and self._bytes_read + n_bytes > _BYTES_PER_MAP:
            if _state(self._path) != self._state:
                raise WeightsError(f"{self._path} was changed while it was read; start again.")
            self._file, self._bytes_read = self._file.remap(), 0
        self._bytes_read += n_bytes
        return self._file


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror}).") from None
    return found.st_ino, found.st_size, found.st_mtime_ns
