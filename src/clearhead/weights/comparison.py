"""How the numbers of two models differ, tensor by tensor: what a number format has cost, or that nothing was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.plan import ConversionPlan

_PIECE = 2**22  # numbers compared at once


@dataclass(frozen=True, slots=True)
class WeightsDifference:
    """What became of one model's numbers in another.

    Attributes:
        n_numbers: how many there are.
        changed: how many are not the same, bit for bit, as float32.
        tensor: the canonical name of the tensor with the greatest change; empty where none is changed.
        before: the number that changed most.
        after: what it became.
    """

    n_numbers: int
    changed: int = 0
    tensor: str = ""
    before: float = 0.0
    after: float = 0.0

    @property
    def greatest(self) -> float:
        """The greatest change, as an absolute value."""
        return abs(self.after - self.before)

    def __str__(self) -> str:
        """The result as a sentence."""
        if not self.changed:
            return f"all {self.n_numbers:,} numbers are the same, bit for bit."
        share = 100 * self.changed / self.n_numbers
        return (
            f"{self.changed:,} of {self.n_numbers:,} numbers changed ({share:.1f}%), by {self.greatest:.3g} at most: "
            f"in {self.tensor}, {self.before:.6g} became {self.after:.6g}."
        )


def compare(one: ConversionPlan, other: ConversionPlan, what: str = "weights") -> WeightsDifference:
    """Compares two plans to the same layout, with one tensor of each in memory at a time.

    A tensor that only one of them has, such as a bias that a form leaves out where it is zero, counts as zeros.

    Args:
        one: gives the numbers as they were.
        other: gives what became of them.
        what: what is compared, for the progress line.

    Raises:
        WeightsError: where two tensors have different shapes, or cannot be read.
    """
    shapes = {**other.targets, **one.targets}
    n_numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    found = WeightsDifference(n_numbers)
    with ByteProgress(f"Comparing {what}", 4 * n_numbers) as progress:
        for name, shape in shapes.items():
            if other.targets.get(name, shape) != shape:
                raise WeightsError(f"{name} has the shape {shape} in one model, {other.targets[name]} in the other.")
            before, after = (p.read(name) if name in p.targets else np.zeros(shape, "f4") for p in (one, other))
            for left, right in zip(_pieces(before), _pieces(after), strict=True):
                found = _with(found, name, left, right)
                progress.advance(left.nbytes)
            del before, after
    return found


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    flat = values.reshape(-1)
    return (flat[start : start + _PIECE] for start in range(0, max(flat.size, 1), _PIECE))


def _with(found: WeightsDifference, name: str, before: np.ndarray, after: np.ndarray) -> WeightsDifference:
    """The result so far, with one more piece of a tensor."""
    changed = int((before.view(np.uint32) != after.view(np.uint32)).sum())
    if not changed:
        return found
    with np.errstate(invalid="ignore", over="ignore"):
        by = np.abs(after - before)
    at = int(np.argmax(np.nan_to_num(by, nan=0.0)))
    more = WeightsDifference(found.n_numbers, found.changed + changed, name, float(before[at]), float(after[at]))
    if found.changed and found.greatest >= more.greatest:
        return WeightsDifference(found.n_numbers, more.changed, found.tensor, found.before, found.after)
    return more
