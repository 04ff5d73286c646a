"""Make the inputs of a matrix alike in size, so that 8 bits are enough for all of them.

Activations of 8 bits share a scale in groups of 64 columns (int8) or 32 (int4). A column that is much larger than its
neighbours (an outlier; GPT-2 has some) takes their bits away. But a norm multiplies each column by a weight of its own,
so a factor can move from there to the column of the matrix that follows, and the model computes the same:

    W norm(x) = (W S) (S^-1 norm(x)) for any diagonal S

As in SmoothQuant (Xiao et al. 2023), both sides get the square root of the difference, S = sqrt(size / reach). What
they measure on a text, the size of a column, is read off the norm's weight and bias here: before them every column
varies by about 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_FOLLOWING = {"norm_1": "attention.qkv", "norm_2": "feed_forward.up"}
"""The norms of a block, and the matrix that each one's output is multiplied by."""


class EqualizedTensors(Mapping[str, npt.NDArray[Any]]):
    """A model's tensors with factors moved from norms to the matrices after them.

    The last norm keeps its own: the matrix after it is often the token embedding too.

    Args:
        tensors: by canonical name; float32.
    """

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self._tensors = tensors
        self._factors: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        block, _, rest = name.rpartition("norm_")
        tensor = self._tensors[name]
        if block and rest[1:] in (".weight", ".bias"):
            return np.asarray(tensor / self._factor(f"{block}norm_{rest[0]}"), np.float32)
        for norm, matrix in _FOLLOWING.items():
            if name.endswith(f".{matrix}.weight"):
                return np.asarray(tensor * self._factor(name.replace(f"{matrix}.weight", norm)), np.float32)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _factor(self, norm: str) -> Floats:
        """Return S of the norm with this name, [C]."""
        if norm not in self._factors:
            block, name = norm.rsplit(".", 1)
            weight, bias = self._tensors[f"{norm}.weight"], self._tensors[f"{norm}.bias"]
            reach = np.abs(self._tensors[f"{block}.{_FOLLOWING[name]}.weight"]).max(axis=0)
            with np.errstate(all="ignore"):
                factor = np.sqrt(np.sqrt(weight * weight + bias * bias) / reach)
            usable = np.isfinite(factor) & (factor > 0)  # a column may be 0, or the weights broken
            self._factors[norm] = np.where(usable, factor, 1).astype(np.float32)
        return self._factors[norm]
