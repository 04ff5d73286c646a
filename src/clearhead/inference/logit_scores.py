"""Scores from whole rows of logits, for what a Runner's scoring pass does not compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clearhead.inference.logprobs import SCORED_ROWS, join_scores, score_rows
from clearhead.inference.runner import TokenScores


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
