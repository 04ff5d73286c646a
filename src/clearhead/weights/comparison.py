"""Compare the numbers of two models, tensor by tensor: what rounding cost, or that nothing was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.plan import ConversionPlan

_CHUNK = 2**22  # numbers compared at once


@dataclass(frozen=True, slots=True)
class WeightsDifference:
    """How one model's numbers differ from another's.

    Attributes:
        n_numbers: how many numbers there are.
        changed: how many differ in their float32 bits.
        tensor: the canonical name of the tensor with the largest change; empty if nothing changed.
        before: the number with the largest change.
        after: its value in the other model.
    """

    n_numbers: int
    changed: int = 0
    tensor: str = ""
    before: float = 0.0
    after: float = 0.0

    @property
    def largest(self) -> float:
        """The largest absolute change."""
        return abs(self.after - self.before)

    def __str__(self) -> str:
        """Return the result as a sentence."""
        if not self.changed:
            return f"all {self.n_numbers:,} numbers are the same, bit for bit."
        share = 100 * self.changed / self.n_numbers
        return (
            f"{self.changed:,} of {self.n_numbers:,} numbers changed ({share:.1f}%), by {self.largest:.3g} at most: "
            f"in {self.tensor}, {self.before:.6g} became {self.after:.6g}."
        )


def compare(one: ConversionPlan, other: ConversionPlan, what: str = "weights") -> WeightsDifference:
    """Compare two plans to the same layout, with one tensor of each in memory at a time.

    A tensor that only one plan has counts as zeros in the other, such as a bias that a layout omits if it is zero.

    Args:
        one: the plan with the numbers before.
        other: the plan with the numbers after.
        what: what is compared, for the progress line.

    Raises:
        WeightsError: if two tensors have different shapes, or cannot be read.
    """
    shapes = {**other.targets, **one.targets}
    n_numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    found = WeightsDifference(n_numbers)
    with ByteProgress(f"Comparing {what}", 4 * n_numbers) as progress:
        for name, shape in shapes.items():
            if other.targets.get(name, shape) != shape:
                raise WeightsError(f"{name} has the shape {shape} in one model, {other.targets[name]} in the other.")
            before, after = (p.read(name) if name in p.targets else np.zeros(shape, "f4") for p in (one, other))
            for left, right in zip(_chunks(before), _chunks(after), strict=True):
                found = _with(found, name, left, right)
                progress.advance(left.nbytes)
            del before, after
    return found


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    flat = values.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, max(flat.size, 1), _CHUNK))


def _with(found: WeightsDifference, name: str, before: np.ndarray, after: np.ndarray) -> WeightsDifference:
    """Return the result so far with one more chunk of a tensor."""
    changed = int((before.view(np.uint32) != after.view(np.uint32)).sum())
    if not changed:
        return found
    with np.errstate(invalid="ignore", over="ignore"):
        by = np.abs(after - before)
    at = int(np.argmax(np.nan_to_num(by, nan=0.0)))
    more = WeightsDifference(found.n_numbers, found.changed + changed, name, float(before[at]), float(after[at]))
    if found.changed and found.largest >= more.largest:
        return WeightsDifference(found.n_numbers, more.changed, found.tensor, found.before, found.after)
    return more
