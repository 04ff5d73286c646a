"""Scores computed from whole rows of logits: what a Runner without a scoring pass of its own uses.

The numbers are those of `runner.TokenScores`, in float64. A Runner's own `score` gives the same to rounding, faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.inference.logprobs import SCORED_ROWS, join_scores, score_rows
from clearhead.inference.runner import Slot, TokenScores


class LogitsRunner(Protocol):
    """What `LogitScorer` needs of a Runner."""

    @property
    def config(self) -> GPTConfig:
        """The shape of the model."""

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits at every token of a whole sequence, float32 [T, V]."""


class ScoredTask(Protocol):
    """The fields of `runner.ScoreTask`."""

    @property
    def slot(self) -> Slot:
        """The sequence."""

    @property
    def ids(self) -> Sequence[int]:
        """The tokens to append."""

    @property
    def targets(self) -> Sequence[int]:
        """The tokens to score."""

    @property
    def start(self) -> int:
        """The index in `ids` of the first token that has a target."""


@dataclass
class TokenSlot:
    """A sequence that is nothing but its tokens.

    Attributes:
        ids: the tokens so far.
    """

    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return len(self.ids)


class LogitScorer:
    """Give the scoring part of the Runner contract to a Runner that has only `logits`.

    Args:
        runner: gives the logits.
    """

    def __init__(self, runner: LogitsRunner) -> None:
        self.runner = runner

    @property
    def config(self) -> GPTConfig:
        """The shape of the model."""
        return self.runner.config

    def open(self) -> TokenSlot:
        """Open a new, empty sequence."""
        return TokenSlot()

    def fork(self, slot: Slot) -> TokenSlot:
        """Open a copy of a sequence."""
        assert isinstance(slot, TokenSlot)
        return TokenSlot(list(slot.ids))

    def close(self, slot: Slot) -> None:
        """Forget a sequence."""

    def score(
        self, work: Sequence[ScoredTask], *, top: int = 0, n_choices: int | None = None
    ) -> tuple[npt.NDArray[np.float32], list[TokenScores]]:
        """Append tokens to each sequence and score the targets, as `runner.ScoringRunner.score`."""
        last = np.empty((len(work), self.config.vocab_size), np.float32)
        found = []
        for row, task in enumerate(work):
            slot = task.slot
            assert isinstance(slot, TokenSlot)
            before = slot.length
            slot.ids += task.ids
            logits = self.runner.logits(slot.ids)[before:]
            last[row] = logits[-1]
            scored = logits[task.start : task.start + len(task.targets)]
            found.append(score_in_blocks(scored, task.targets, top, n_choices))
        return last, found


def score_in_blocks(
    logits: npt.NDArray[np.float32], targets: Sequence[int], top: int, n_choices: int | None
) -> TokenScores:
    """Score one target per row of logits, with a few rows in float64 at a time; see `logprobs.score_rows`."""
    parts = [score_rows(logits[:0], (), top, n_choices)]
    for first in range(0, len(logits), SCORED_ROWS):
        rows = slice(first, first + SCORED_ROWS)
        parts.append(score_rows(logits[rows], targets[rows], top, n_choices))
    return join_scores(parts)


def group_logprobs(logits: npt.NDArray[np.float32], groups: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the log-probability that the next token is in a group: logits [N, V] and groups [G, V] to [N, G]."""
    found = np.empty((len(logits), len(groups)))
    for first in range(0, len(logits), SCORED_ROWS):
        scaled = logits[first : first + SCORED_ROWS].astype(np.float64)
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))  # [n, V]
        with np.errstate(divide="ignore"):
            found[first : first + SCORED_ROWS] = np.log(weights @ groups.T) - np.log(weights.sum(axis=1, keepdims=True))
    return found
