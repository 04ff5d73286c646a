"""Reading a file that is larger than the memory, one tensor after another, and giving back what each one took.

A file is mapped, and what has been touched of a map counts as memory of the process for as long as the map is
there. A conversion touches every byte, so the whole file would count in the end. Here it is mapped anew from time to
time, and the old map goes with the last array that refers to it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clearhead.errors import WeightsError
from clearhead.weights.tensors import TensorFile

_AT_ONCE = 192 * 2**20  # bytes that may have been touched before the file is mapped anew


class StreamingReader:
    """Reads a file's tensors for a plan that runs once: a `plan.Read`.

    What it gives is good as long as somebody holds it; changing it in memory has no effect on what is read later.
    """

    def __init__(self, file: TensorFile) -> None:
        self._path, self._file, self._touched = file.path, file.remap(), 0
        self._tensors = file.tensors
        self._state = _state(file.path)
        self._n_layers = getattr(getattr(file, "config", None), "n_layers", 1)
        if hasattr(file.read, "layer"):
            self.layer = self._layer

    def __call__(self, name: str) -> np.ndarray:
        """One tensor, as the file's own `read` gives it."""
        return self._after(self._tensors[name].nbytes).read(name)

    def _layer(self, name: str, layer: int) -> np.ndarray:
        file = self._after(self._tensors[name].nbytes // self._n_layers)
        values: np.ndarray = file.read.layer(name, layer)  # type: ignore[attr-defined]
        return values

    def _after(self, n_bytes: int) -> TensorFile:
        """The file, before so many more bytes of it are touched."""
        if self._touched and self._touched + n_bytes > _AT_ONCE:
            if _state(self._path) != self._state:
                raise WeightsError(f"{self._path} was changed while it was read; start again.")
            self._file, self._touched = self._file.remap(), 0
        self._touched += n_bytes
        return self._file


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror}).") from None
    return found.st_ino, found.st_size, found.st_mtime_ns
