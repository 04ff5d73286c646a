"""Draw the training batches, as a pure function of the seed and the step.

A text of N tokens is treated as a ring: after its last token comes its first. Windows of T tokens follow one another
around the ring without gaps; window n begins at token n * T. Epoch e consists of the windows that begin in the
(e + 1)-th time around, in a shuffled order of its own. So every token is an input exactly once in each time around, and
a target exactly once. If T does not divide N, the last window of an epoch takes its end from the beginning of the text,
and the next epoch begins after that: no token is skipped, repeated or padded, and the next epoch's windows are cut at
other positions.

A fixed pattern with the recipe's shares decides from which text the next window comes. There is no state: to resume a
run, ask for the batch of the next step. Nothing is stored for each window either (`permutation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clearhead.data.documents import TokenIds
from clearhead.data.permutation import Permutation
from clearhead.errors import TrainingError

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Inputs and targets, int64 [B, T] each; a target of -100 does not count."""

_CYCLE = 1000  # windows after which the pattern of texts repeats: the shares are exact to a thousandth


class WindowBatches:
    """Batches of windows from several texts, mixed by weight.

    Args:
        texts: the ids of each text, integers [tokens].
        weights: each text's share of the windows, relative to the sum; 1 for a text that is not named.
        context_length: tokens in a window (T).
        batch_size: windows in a batch (B).
        seed: determines the orders and the pattern.

    Raises:
        TrainingError: if a text is too short for a window and the token after it.
    """

    def __init__(
        self,
        texts: Mapping[str, TokenIds],
        weights: Mapping[str, float],
        context_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.texts = list(texts.values())
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        for name, ids in texts.items():
            if len(ids) < context_length + 1:
                raise TrainingError(
                    f"the text {name!r} has {len(ids):,} tokens; with windows of {context_length} it needs at least "
                    f"{context_length + 1:,}. Give more text or a shorter context_length."
                )
        self._pattern = _text_pattern([weights.get(name, 1.0) for name in texts], seed)  # [cycle]: number of the text
        # The number of windows of each text before an index of the pattern: [texts, cycle + 1]
        of_text = self._pattern == np.arange(len(self.texts))[:, None]
        self._before = np.concatenate([np.zeros((len(self.texts), 1), np.int64), of_text.cumsum(axis=1)], axis=1)
        self._orders: dict[int, tuple[int, Permutation]] = {}  # of each text: its epoch and that epoch's order

    def draw(self, step: int) -> Batch:
        """Return the inputs and the targets (one token later) of a step, int64 [B, T] each.

        Args:
            step: the step, from 0; any, in any order.
        """
        first = step * self.batch_size
        windows = np.empty((self.batch_size, self.context_length + 1), np.int64)  # [B, T + 1]
        for number, row in enumerate(windows, first):
            self._read(*self._locate(number), row)
        return windows[:, :-1], windows[:, 1:]

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(map(len, self.texts))

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens of a batch."""
        return self.batch_size * self.context_length

    def epochs(self, step: int) -> list[float]:
        """Return how often each text has been seen after `step` steps."""
        cycles, index = divmod(step * self.batch_size, len(self._pattern))
        seen = cycles * self._before[:, -1] + self._before[:, index]
        return [n * self.context_length / len(ids) for n, ids in zip(seen.tolist(), self.texts, strict=True)]

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the text that a window of the run comes from, and the index of its first token there."""
        cycle, index = divmod(number, len(self._pattern))
        text = int(self._pattern[index])
        count = int(cycle * self._before[text, -1] + self._before[text, index])
        length = len(self.texts[text])
        epoch = count * self.context_length // length
        first = self._windows_before(length, epoch)
        window = first + self._order(text, epoch)(count - first)
        return text, window * self.context_length % length

    def _windows_before(self, length: int, epoch: int) -> int:
        """Return how many windows begin before an epoch's first token."""
        return -(-epoch * length // self.context_length)

    def _order(self, text: int, epoch: int) -> Permutation:
        # One is kept for each text: windows are asked for epoch after epoch, and another is cheap to make.
        if self._orders.get(text, (None,))[0] != epoch:
            length = len(self.texts[text])
            size = self._windows_before(length, epoch + 1) - self._windows_before(length, epoch)
            self._orders[text] = epoch, Permutation(size, self.seed, text, epoch)
        return self._orders[text][1]

    def _read(self, text: int, start: int, row: npt.NDArray[np.int64]) -> None:
        """Fill a row with the tokens from an index on, around the ring."""
        ids = self.texts[text]
        until_end = min(len(row), len(ids) - start)
        row[:until_end] = ids[start : start + until_end]
        if until_end < len(row):
            row[until_end:] = ids[: len(row) - until_end]


def _text_pattern(weights: list[float], seed: int) -> npt.NDArray[np.int64]:
    """Return the text of each window of a cycle: the shares by largest remainder, shuffled."""
    shares = np.array(weights) / sum(weights) * _CYCLE
    counts = np.maximum(np.floor(shares).astype(np.int64), 1)
    for text in np.argsort(counts - shares, kind="stable")[: max(_CYCLE - counts.sum(), 0)]:
        counts[text] += 1
    pattern = np.repeat(np.arange(len(weights)), counts)
    return np.random.Generator(np.random.PCG64([seed, 0x6D6978])).permutation(pattern)
