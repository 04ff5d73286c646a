"""The steps of a conversion plan: which axes of which stored tensors become one target tensor.

A step knows names, axes and shapes only. `TargetStep.make` reads the values and moves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.weights.layouts import LayoutTensor
from clearhead.weights.tensors import TensorInfo

TensorReader = Callable[[str], npt.NDArray[Any]]
"""Returns a source tensor's values by name. A reader with a method `layer(name, i)` also returns one layer of a stack,
for files in which reading the whole stack would cost much time or memory."""


@dataclass(frozen=True)
class SourceSlice:
    """The part of one stored tensor that goes into a target.

    Attributes:
        source: the stored name.
        info: the stored tensor's shape and dtype.
        tensor: its axes.
        source_index: the index to take on axes that only the source has (one layer, or one of q, k and v).
        target_index: the index to write to on axes that only the target has.
    """

    source: str
    info: TensorInfo
    tensor: LayoutTensor
    source_index: dict[str, int] = field(hash=False)
    target_index: dict[str, int] = field(hash=False)

    def arrange(self, values: npt.NDArray[Any], target: LayoutTensor, sizes: dict[str, int]) -> npt.NDArray[Any]:
        """Return the values with one dimension per axis, in the target's order; a view if `values` is contiguous."""
        axes = self.tensor.axes
        spread = values.reshape([sizes[axis] for axis in axes])
        taken = spread[tuple(self.source_index.get(axis, slice(None)) for axis in axes)]
        left = [axis for axis in axes if axis not in self.source_index]
        return taken.transpose([left.index(axis) for axis in target.axes if axis not in self.target_index])

    def read(self, read: TensorReader, target: LayoutTensor, sizes: dict[str, int]) -> npt.NDArray[Any]:
        """Read the source and return its values as `arrange` does; of a stack of layers, only the layer it needs."""
        read_layer = getattr(read, "layer", None)
        if read_layer is None or "L" not in self.source_index or self.tensor.dims[0] != ("L",):
            return self.arrange(read(self.source), target, sizes)
        index = {axis: at for axis, at in self.source_index.items() if axis != "L"}
        one = replace(self, tensor=replace(self.tensor, dims=self.tensor.dims[1:]), source_index=index)
        return one.arrange(read_layer(self.source, self.source_index["L"]), target, sizes)

    def operations(self, target: LayoutTensor) -> list[str]:
        """Return the names of the operations that `arrange` performs, for a table."""
        found = ["take"]
        if () in self.tensor.dims:
            found.append("squeeze")
        if self.source_index:
            found.append("split")
        before = [tuple(a for a in dim if a not in self.source_index) for dim in self.tensor.dims]
        before = [dim for dim in before if dim]
        after = [tuple(a for a in dim if a not in self.target_index) for dim in target.dims]
        after = [dim for dim in after if dim]
        if before == after:
            pass
        elif len(before) == 2 and before == after[::-1]:
            found.append("transpose")
        elif [a for dim in before for a in dim] == [a for dim in after for a in dim]:
            found.append("reshape")
        else:
            found.append("rearrange")
        return found


@dataclass(frozen=True)
class TargetStep:
    """One target tensor and the source slices that fill it; without slices it is filled with zeros.

    Attributes:
        target: the name of the tensor to make.
        tensor: its axes.
        slices: the stored tensors, or parts of them, that it is made of.
        reason: why it is zeros, a copy, or scaled.
        query_scales: for each layer, what the queries in the tensor are multiplied by; empty to leave them.
    """

    target: str
    tensor: LayoutTensor
    slices: tuple[SourceSlice, ...]
    reason: str = ""
    query_scales: tuple[float, ...] = ()

    def make(
        self, read: TensorReader, sizes: dict[str, int], dtype: np.dtype[Any] | None, row_major: bool = True
    ) -> npt.NDArray[Any]:
        """Return the target's values; the source's own memory if nothing has to be done.

        Args:
            read: the source's reader.
            sizes: the length of each axis.
            dtype: the dtype to return; None for the stored one.
            row_major: whether the result must be contiguous; if False, a matrix that is stored transposed is
                returned as a view in column-major order.
        """
        if self.query_scales:
            return self._scaled(replace(self, query_scales=()).make(read, sizes, None), sizes, dtype)
        shape = self.tensor.shape(sizes)
        if not self.slices:
            return np.zeros(shape, dtype or np.float32)
        if not self.slices[0].target_index:
            (part,) = self.slices
            # A view, unless merged axes are not adjacent in memory.
            arranged = part.read(read, self.tensor, sizes).reshape(shape)
            if arranged.ndim == 2 and arranged.strides[0] == arranged.itemsize and arranged.size > _TILE**2:
                if not row_major and dtype in (None, arranged.dtype):
                    return arranged
                return _transposed_copy(arranged, dtype or arranged.dtype)
            return np.ascontiguousarray(arranged, dtype)
        out: npt.NDArray[Any] | None = None
        for part in self.slices:
            values = part.read(read, self.tensor, sizes)
            if out is None:
                out = np.empty([sizes[axis] for axis in self.tensor.axes], dtype or values.dtype)
            out[tuple(part.target_index.get(axis, slice(None)) for axis in self.tensor.axes)] = values
        assert out is not None
        return out.reshape(shape)

    def _scaled(self, values: npt.NDArray[Any], sizes: dict[str, int], dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
        """Return a copy of the values in which the queries are scaled; computed in at least float32."""
        axes = self.tensor.axes
        working = np.promote_types(values.dtype, np.float32)
        spread = np.array(values, working, order="C").reshape([sizes[axis] for axis in axes])
        for layer in range(len(self.query_scales)) if "L" in axes else (self.tensor.fixed["L"],):
            index = tuple({"L": layer, "S": 0}.get(axis, slice(None)) for axis in axes)
            spread[index] *= working.type(self.query_scales[layer])
        return spread.reshape(self.tensor.shape(sizes)).astype(dtype or working, copy=False)

    def layers(self, n_layers: int) -> list[TargetStep]:
        """Return one step per layer if the target is a stack of layers, else this step alone.

        Run one after another, they give the target's values in order with one layer in memory at a time.
        """
        if not self.tensor.dims or self.tensor.dims[0] != ("L",):
            return [self]
        found = []
        for layer in range(n_layers):
            tensor = replace(self.tensor, dims=self.tensor.dims[1:], fixed={**self.tensor.fixed, "L": layer})
            slices = [  # a source that is itself a stack gives every layer, another only its own
                replace(part, source_index={**part.source_index, "L": layer})
                if "L" not in part.target_index
                else replace(part, target_index={axis: at for axis, at in part.target_index.items() if axis != "L"})
                for part in self.slices
                if part.target_index.get("L", layer) == layer
            ]
            found.append(replace(self, tensor=tensor, slices=tuple(slices)))
        return found

    def operations(self) -> tuple[str, ...]:
        """Return the names of the operations that `make` performs to return float32."""
        if not self.slices:
            return ("zeros",)
        found = self.slices[0].operations(self.tensor)
        if self.slices[0].target_index:
            found.append("stack")
        if () in self.tensor.dims:
            found.append("unsqueeze")
        if self.query_scales:
            found.append("scale")
        if any(part.info.dtype != "float32" for part in self.slices):
            found.append("cast")
        return tuple(found)


_TILE = 192  # rows and columns: 147 KB in float32, which fits the second-level cache


def _transposed_copy(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a contiguous copy of a column-major matrix, in half the time that NumPy takes.

    Walking down either matrix touches a new cache line for each number, and if a row has a power of two bytes, all
    those lines compete for the same few cache sets. So each tile is first copied row by row into a buffer whose rows
    have an odd length, and transposed from there.
    """
    rows, columns = values.shape
    out = np.empty((rows, columns), dtype)
    buffer = np.empty((_TILE, _TILE + 16), dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = values[row : row + _TILE, column : column + _TILE].T
            near = buffer[: tile.shape[0], : tile.shape[1]]
            near[:] = tile
            out[row : row + _TILE, column : column + _TILE] = near.T
    return out
