"""The second moments of what matrices are multiplied by, X^T X, which int4 needs (see `calibration.py`).

They take as much arithmetic as a prompt of thousands of tokens, so the engine's own products compute them: of the
inputs with themselves, those of one column being a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.engine.arrays import Matrix, Vectors, float_rows
from clearhead.engine.dtypes import activation_type, storage
from clearhead.engine.elementwise import quantize_activations
from clearhead.engine.packing import pack
from clearhead.engine.panels import GROUP, PANEL, padded_columns, padded_rows
from clearhead.engine.products import multiply
from clearhead.engine.variants import VARIANT
from clearhead.utils.jit import entry

Floats = npt.NDArray[np.float32]

_DTYPE = "bfloat16" if VARIANT.bfloat16 else "float32"
"""How inputs are multiplied. Both sides are rounded alike, so the result is the exact moments of rounded inputs."""
_ROWS = 2 * PANEL
"""Rows of the result that are computed together: those of one piece of a thread's work."""


class InputRecord:
    """Some inputs of a matrix.

    Args:
        columns: of the matrix.
        most: how many inputs may be added.
    """

    def __init__(self, columns: int, most: int) -> None:
        self.columns = columns
        self._inputs = float_rows(most, columns, np.float32)[:, :columns]
        self._n = 0

    def add(self, inputs: Floats) -> None:
        """Add inputs, [rows, columns]."""
        self._inputs[self._n : self._n + len(inputs)] = inputs
        self._n += len(inputs)

    def moments(self, threads: int) -> Floats:
        """Return X^T X of all inputs X, [columns, columns]."""
        x = self._inputs[: self._n].T
        arrays = {
            name: np.zeros((1, size), kind)
            for name, (kind, size) in storage(_DTYPE, VARIANT.activations, *x.shape).items()
        }
        pack(_DTYPE, x, arrays["weights"][0], arrays["scales"][0], threads)
        matrix = Matrix(arrays["weights"], arrays["scales"], np.zeros((1, padded_rows(self.columns)), np.float32))
        found = float_rows(self.columns, padded_rows(self.columns), np.float32)

        def fill(first: int) -> None:
            """Compute some rows up to their diagonal, and mirror them."""
            rows, stop = x[first : first + _ROWS], min(self.columns, first + _ROWS)
            columns = padded_columns(self._n)
            kind = activation_type(matrix.weights.dtype)
            vectors = Vectors(
                numbers=float_rows(len(rows), columns, kind),
                scales=np.zeros((len(rows), 1), np.float32),
                offsets=np.zeros((len(rows), columns // GROUP), np.int32),
            )
            _multiply_rows(rows, self._n, columns, padded_rows(stop) // PANEL, matrix, vectors, found[first:stop])
            found[:first, first:stop] = found[first:stop, :first].T

        with ThreadPoolExecutor(threads) as pool:  # the longest rows first, so that no thread is left with them
            list(pool.map(fill, reversed(range(0, self.columns, _ROWS))))
        return found[:, : self.columns]


@entry
def _multiply_rows(rows: Any, width: int, columns: int, panels: int, matrix: Any, vectors: Any, found: Any) -> None:
    """Write the products of rows, float32 [n, width], with the first panels of a matrix to `found`."""
    for i in range(len(rows)):
        numbers, scales, offsets = vectors.numbers, vectors.scales, vectors.offsets
        quantize_activations(matrix.weights, rows, i, width, columns, numbers, scales, offsets, i)
    multiply(matrix, 0, columns, 0, panels, vectors, 0, len(rows), found, 0, 0)


class Moments(Mapping[str, Floats]):
    """The moments of the inputs of a model's matrices, by canonical name; each is computed when it is asked for.

    Args:
        records: the inputs of each matrix.
        threads: how many share the work.
    """

    def __init__(self, records: Mapping[str, InputRecord], threads: int) -> None:
        self._records, self._threads = records, threads

    def __getitem__(self, name: str) -> Floats:
        return self._records[name].moments(self._threads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
