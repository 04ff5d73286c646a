"""Batches that are a pure function of the seed and the step.

A text of N tokens is a ring: behind its last token comes its first. Windows of T tokens follow one another around it
without a gap and without end, window n from token n * T on. Epoch e is the windows that begin in the (e + 1)-th time
around, and gives them in a shuffled order of its own. So every token goes in exactly once in each time around, and is
asked for exactly once. Where T does not divide N, the last window of an epoch takes its end from the beginning of the
text, and the next epoch begins after that: no token is left out, seen twice or filled up, and the next epoch's windows
are cut at other places.

Which text the next window comes from follows a fixed pattern with the recipe's shares. Nothing here has a state: to
resume a run, ask for the batch of the next step. Nothing is stored for each window either (`permutation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clearhead.data.documents import Ids
from clearhead.data.permutation import Permutation
from clearhead.errors import TrainingError

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Inputs and targets, int64 [B, T] each; a target of -100 does not count."""

_CYCLE = 1000  # windows after which the pattern of texts repeats: the shares are exact to a thousandth


class Batches:
    """The training windows of several texts, mixed by weight.

    Args:
        texts: ids of each text, integers [tokens].
        weights: the share of the windows that each gives, relative to the sum; 1 for a text that is not named.
        context_length: tokens in a window (T).
        batch_size: windows in a batch (B).
        seed: decides orders and the pattern.

    Raises:
        TrainingError: where a text is too short for a window and the token after it.
    """

    def __init__(
        self,
        texts: Mapping[str, Ids],
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
        self._pattern = _pattern([weights.get(name, 1.0) for name in texts], seed)  # [cycle]: which text
        # How many windows of each text come before a place in the pattern: [texts, cycle + 1]
        of_text = self._pattern == np.arange(len(self.texts))[:, None]
        self._before = np.concatenate([np.zeros((len(self.texts), 1), np.int64), of_text.cumsum(axis=1)], axis=1)
        self._orders: dict[int, tuple[int, Permutation]] = {}  # of each text: the epoch it is in, and its order

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The inputs and the targets (one token later) of a step, int64 [B, T] each.

        Args:
            step: which one, from 0; any, in any order.
            rank, world: process `rank` of `world` gets its rows only: those from rank * B // world on and before
                (rank + 1) * B // world. All ranks' rows, one below the other, are the batch.
        """
        first, last = (step * self.batch_size + r * self.batch_size // world for r in (rank, rank + 1))
        windows = np.empty((last - first, self.context_length + 1), np.int64)  # [B, T + 1]
        for row, index in zip(windows, range(first, last), strict=True):
            self._read(*self._place(index), row)
        return windows[:, :-1], windows[:, 1:]

    def epochs(self, step: int) -> list[float]:
        """How often each text has been seen when `step` steps are done."""
        cycles, place = divmod(step * self.batch_size, len(self._pattern))
        seen = cycles * self._before[:, -1] + self._before[:, place]
        return [n * self.context_length / len(ids) for n, ids in zip(seen.tolist(), self.texts, strict=True)]

    def _place(self, index: int) -> tuple[int, int]:
        """Which text a window of the run is from, and its first token there."""
        cycle, place = divmod(index, len(self._pattern))
        text = int(self._pattern[place])
        count = int(cycle * self._before[text, -1] + self._before[text, place])
        length = len(self.texts[text])
        epoch = count * self.context_length // length
        first = self._first(length, epoch)
        window = first + self._order(text, epoch)(count - first)
        return text, window * self.context_length % length

    def _first(self, length: int, epoch: int) -> int:
        """How many windows come before an epoch: those that begin before its first token."""
        return -(-epoch * length // self.context_length)

    def _order(self, text: int, epoch: int) -> Permutation:
        # One is kept for each text: windows are asked for epoch after epoch, and another is cheap to make.
        if self._orders.get(text, (None,))[0] != epoch:
            length = len(self.texts[text])
            size = self._first(length, epoch + 1) - self._first(length, epoch)
            self._orders[text] = epoch, Permutation(size, self.seed, text, epoch)
        return self._orders[text][1]

    def _read(self, text: int, start: int, row: npt.NDArray[np.int64]) -> None:
        """Fills a row with the tokens from a place on, around the ring."""
        ids = self.texts[text]
        here = min(len(row), len(ids) - start)
        row[:here] = ids[start : start + here]
        if here < len(row):
            row[here:] = ids[: len(row) - here]


def _pattern(weights: list[float], seed: int) -> npt.NDArray[np.int64]:
    """Which text each window of a cycle comes from: the shares by largest remainder, shuffled."""
    shares = np.array(weights) / sum(weights) * _CYCLE
    counts = np.maximum(np.floor(shares).astype(np.int64), 1)
    for text in np.argsort(counts - shares, kind="stable")[: max(_CYCLE - counts.sum(), 0)]:
        counts[text] += 1
    pattern = np.repeat(np.arange(len(weights)), counts)
    return np.random.Generator(np.random.PCG64([seed, 0x6D6978])).permutation(pattern)
