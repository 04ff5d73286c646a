"""Examples for fine-tuning, and the batches that are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clearhead.data.batches import Batch
from clearhead.losses import NOT_COUNTED

_MULTIPLE = 32  # batches are padded to a multiple of it: few shapes, little padding


@dataclass(frozen=True, slots=True)
class Example:
    """One example: tokens, and the target of each.

    Attributes:
        inputs: ids [T].
        targets: ids [T]; -100 for tokens whose target does not count.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def draw_split(count: int, valid: float, test: float, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Divide examples at random into training, validation and test examples.

    Args:
        count: the number of examples.
        valid, test: the shares of the validation and the test examples.
        seed: the seed of the draw.

    Returns:
        the indices of each kind, increasing.
    """
    order = np.random.Generator(np.random.PCG64([seed, 0x73706C])).permutation(count)
    first, second = round(count * valid), round(count * valid) + round(count * test)
    parts = (order[second:], order[:first], order[first:second])
    train, held_out, tested = (np.sort(part).tolist() for part in parts)
    return train, held_out, tested


class ExampleBatches:
    """Batches of examples. Each epoch has its own order, which the seed and the epoch's number determine.

    Args:
        examples: at least one.
        batch_size: examples in a batch.
        seed: the seed of the orders.
        context_length: the maximum number of tokens of the model.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int, context_length: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.context_length = context_length
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def draw(self, step: int) -> Batch:
        """Return the inputs and targets of a step, int64 [B, T] each."""
        return pad_together([self.examples[index] for index in self.indices(step)], self.context_length)

    def indices(self, step: int) -> list[int]:
        """Return the indices of the examples of a step."""
        first = step * self.batch_size
        return [self._index(first + n) for n in range(self.batch_size)]

    def _index(self, number: int) -> int:
        """Return the index of the example that is drawn as number so-and-so of the run."""
        epoch, within = divmod(number, len(self.examples))
        if epoch not in self._orders:
            random = np.random.Generator(np.random.PCG64([self.seed, 0x6578, epoch]))
            # A batch spans two epochs at most.
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = random.permutation(len(self.examples))
        return int(self._orders[epoch][within])


def pad_together(examples: Sequence[Example], context_length: int) -> Batch:
    """Make examples rows of one batch, padded at their ends with tokens whose targets do not count.

    Args:
        examples: none of them longer than the context.
        context_length: the maximum number of tokens of the model.

    Returns:
        inputs and targets, int64 [B, T] each.
    """
    longest = max(len(example.inputs) for example in examples)
    length = min(-(-longest // _MULTIPLE) * _MULTIPLE, context_length)
    inputs = np.zeros((len(examples), length), np.int64)
    targets = np.full((len(examples), length), NOT_COUNTED, np.int64)
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)] = example.inputs
        targets[row, : len(example.targets)] = example.targets
    return inputs, targets
