"""Sequences that have ended, for later ones that begin alike: system prompts and conversations stay cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clearhead.inference.runner import Runner, Slot

SHORTEST = 16
"""A shorter common beginning is not worth a fork."""


class Beginning(NamedTuple):
    """A slot whose sequence begins like a prompt, and how many tokens the two have in common."""

    slot: Slot
    length: int


class PrefixCache:
    """Ended sequences, the least recently used one dropped first.

    Args:
        runner: owns the slots.
        max_tokens: how many tokens the sequences may have together; 0 to keep none.
    """

    def __init__(self, runner: Runner, max_tokens: int) -> None:
        self._runner = runner
        self._max_tokens = max_tokens
        self._sequences: OrderedDict[int, tuple[npt.NDArray[np.int64], Slot]] = OrderedDict()
        self._added = 0
        self.tokens = 0
        """The number of tokens of all sequences; pages that they share are counted for each."""

    def __len__(self) -> int:
        return len(self._sequences)

    def find(self, ids: Sequence[int], running: Iterable[tuple[Sequence[int], Slot]] = ()) -> Beginning | None:
        """Return the sequence that has the most tokens in common with the beginning of a prompt.

        At least the prompt's last token is left to run, since its logits are needed.

        Args:
            ids: the prompt.
            running: sequences that are still growing; they are candidates too.
        """
        if self._max_tokens == 0 or len(ids) <= SHORTEST:
            return None
        prompt = np.asarray(ids[:-1], np.int64)
        best: Beginning | None = None
        used: int | None = None
        candidates: list[tuple[int | None, Sequence[int] | npt.NDArray[np.int64], Slot]] = [
            *((key, known, slot) for key, (known, slot) in self._sequences.items()),
            *((None, known, slot) for known, slot in running),
        ]
        for key, known, slot in candidates:
            length = common_length(prompt, np.asarray(known[: min(len(known), slot.length)], np.int64))
            if length >= SHORTEST and (best is None or length > best.length):
                best, used = Beginning(slot, length), key
        if used is not None:
            self._sequences.move_to_end(used)
        return best

    def add(self, ids: Sequence[int], slot: Slot) -> None:
        """Take over an ended sequence, and close what does not fit any more.

        Args:
            ids: its tokens.
            slot: it belongs to the cache from now on.
        """
        known = np.asarray(ids[: slot.length], np.int64)
        if len(known) <= SHORTEST or len(known) > self._max_tokens:
            self._runner.close(slot)
            return
        for key, (other, _) in list(self._sequences.items()):
            if len(other) <= len(known) and common_length(other, known) == len(other):
                self._drop(key)  # the new one serves for it
        self._sequences[self._added] = known, slot
        self._added += 1
        self.tokens += len(known)
        while self.tokens > self._max_tokens:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Close the least recently used sequence; return whether there was one."""
        if not self._sequences:
            return False
        self._drop(next(iter(self._sequences)))
        return True

    def clear(self) -> None:
        """Close all sequences."""
        while self.drop_oldest():
            pass

    def _drop(self, key: int) -> None:
        known, slot = self._sequences.pop(key)
        self.tokens -= len(known)
        self._runner.close(slot)


def common_length(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
