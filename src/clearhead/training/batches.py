"""Batches that are a pure function of the seed and the step.

A text is one long array of ids. Each epoch cuts it into windows of T tokens (and the one after), from an
offset of its own and in an order of its own, so that no token is seen twice in an epoch. Which text the next
window comes from follows a fixed pattern with the recipe's shares. Nothing here has a state: to resume a run,
ask for the batch of the next step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clearhead.errors import TrainingError

_CYCLE = 1000  # windows after which the pattern of texts repeats: the shares are exact to a thousandth


class Batches:
    """The training windows of several texts, mixed by weight.

    Args:
        texts: ids of each text, integers [tokens].
        weights: the share of the windows that each gives, relative to the sum.
        context_length: tokens in a window (T).
        batch_size: windows in a batch (B).
        seed: decides offsets, orders and the pattern.

    Raises:
        TrainingError: where a text is too short for two windows.
    """

    def __init__(
        self,
        texts: Mapping[str, npt.NDArray[np.integer]],
        weights: Mapping[str, float],
        context_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.texts = list(texts.values())
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        for name, ids in texts.items():
            if len(ids) < 2 * context_length + 1:
                raise TrainingError(
                    f"the text {name!r} has {len(ids):,} tokens; with windows of {context_length} it needs at least "
                    f"{2 * context_length + 1:,}. Give more text or a shorter context_length."
                )
        self._pattern = _pattern([weights[name] for name in texts], seed)  # [cycle]: which text
        # How many windows of each text come before a place in the pattern: [texts, cycle + 1]
        of_text = self._pattern == np.arange(len(self.texts))[:, None]
        self._before = np.concatenate([np.zeros((len(self.texts), 1), np.int64), of_text.cumsum(axis=1)], axis=1)
        self._orders: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}

    def batch(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The inputs and the targets (one token later) of a step, int64 [B, T] each."""
        windows = np.stack([self._window(step * self.batch_size + i) for i in range(self.batch_size)])  # [B, T + 1]
        return windows[:, :-1], windows[:, 1:]

    def epochs(self, step: int) -> list[float]:
        """How often each text has been seen when `step` steps are done."""
        cycles, place = divmod(step * self.batch_size, len(self._pattern))
        seen = cycles * self._before[:, -1] + self._before[:, place]
        return [float(n / self._per_epoch(text)) for text, n in enumerate(seen)]

    def _window(self, index: int) -> npt.NDArray[np.int64]:
        cycle, place = divmod(index, len(self._pattern))
        text = int(self._pattern[place])
        count = int(cycle * self._before[text, -1] + self._before[text, place])
        epoch, nth = divmod(count, self._per_epoch(text))
        offset, order = self._order(text, epoch)
        start = offset + int(order[nth]) * self.context_length
        return self.texts[text][start : start + self.context_length + 1].astype(np.int64)

    def _per_epoch(self, text: int) -> int:
        """Windows in an epoch: as many as fit behind the largest offset."""
        return (len(self.texts[text]) - self.context_length) // self.context_length

    def _order(self, text: int, epoch: int) -> tuple[int, npt.NDArray[np.int64]]:
        if (text, epoch) not in self._orders:
            for old in [key for key in self._orders if key[0] == text]:
                del self._orders[old]  # a text is in one epoch at a time; an older one is cheap to make again
            random = np.random.Generator(np.random.PCG64([self.seed, text, epoch]))
            offset = int(random.integers(self.context_length))
            self._orders[text, epoch] = offset, random.permutation(self._per_epoch(text))
        return self._orders[text, epoch]


def _pattern(weights: list[float], seed: int) -> npt.NDArray[np.int64]:
    """Which text each window of a cycle comes from: the shares by largest remainder, shuffled."""
    shares = np.array(weights) / sum(weights) * _CYCLE
    counts = np.maximum(np.floor(shares).astype(np.int64), 1)
    for text in np.argsort(counts - shares, kind="stable")[: max(_CYCLE - counts.sum(), 0)]:
        counts[text] += 1
    pattern = np.repeat(np.arange(len(weights)), counts)
    return np.random.Generator(np.random.PCG64([seed, 0x6D6978])).permutation(pattern)
