"""Log-probabilities of tokens from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from clearhead.inference.filters import Floats, top_k_ids
from clearhead.inference.runner import TokenScores

SCORED_ROWS = 64
"""Rows of logits that a Runner scores at a time: 64 x 50,257 numbers in float64 are 25 MiB."""


_FIELDS = tuple(field.name for field in fields(TokenScores))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token, and the most likely tokens at its position.

    Attributes:
        id: the token.
        logprob: its log-probability in nats, in the model's own distribution: before penalties, bias, temperature
            and filters.
        top: the most likely tokens at this position with their log-probabilities, the best first.
        text: the token's text, with � for bytes that are not whole characters; None without a tokenizer.
        top_texts: the same for each of `top`.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    text: str | None = None
    top_texts: tuple[str, ...] = ()

    def with_texts(self, token_bytes: Callable[[int], bytes]) -> TokenLogprob:
        """Return a copy with the tokens' texts, from a tokenizer's function that gives the bytes of a token."""
        text, *others = (token_bytes(id).decode("utf-8", "replace") for id in (self.id, *(id for id, _ in self.top)))
        return replace(self, text=text, top_texts=tuple(others))


def token_logprob(logits: Floats, token: int, n_top: int = 0, n_choices: int | None = None) -> TokenLogprob:
    """Return the log-probability of a token under the log-softmax of the logits, and the best alternatives.

    Args:
        logits: float32 [V], as they come from the model; sums are in float64.
        token: the id that was chosen.
        n_top: how many of the most likely tokens to list; the chosen one is among them if it is one of them.
        n_choices: list only ids below this, if the tokenizer has fewer tokens than the model; None for all.
    """
    normalizer = float(log_sum_exp(logits[None, :])[0])
    choices = logits[:n_choices]
    ids = top_k_ids(choices, min(n_top, len(choices))) if n_top else np.zeros(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    top = tuple((int(i), float(logits[i]) - normalizer) for i in ids)
    return TokenLogprob(token, float(logits[token]) - normalizer, top)


def log_sum_exp(logits: Floats) -> npt.NDArray[np.float64]:
    """Return log(sum(exp(logits))) over the last axis, in float64: [N, V] -> [N]."""
    greatest: npt.NDArray[np.float64] = logits.max(axis=-1, keepdims=True).astype(np.float64)
    sums: npt.NDArray[np.float64] = np.exp(logits - greatest).sum(axis=-1)
    return greatest[..., 0] + np.log(sums)


def score_rows(
    logits: npt.NDArray[np.float32],
    targets: Sequence[int],
    top: int = 0,
    n_choices: int | None = None,
    groups: npt.NDArray[np.bool_] | None = None,
) -> TokenScores:
    """Score one target per row of logits.

    Args:
        logits: float32 [N, V]; sums are in float64.
        targets: [N], the token that follows at each row.
        top: how many of the most likely tokens to return for each row.
        n_choices: count only ids below this in ranks and top; None for all.
        groups: sets of tokens, bool [G, V], whose probabilities are wanted at each row.
    """
    ids, rows = np.asarray(targets, np.int64), np.arange(len(targets))
    if not len(ids):
        return empty_scores(0, top, 0 if groups is None else len(groups))
    chosen, choices = logits[rows, ids], logits[:, :n_choices]
    normalizers = log_sum_exp(logits)  # [N]
    logs = logits.astype(np.float64) - normalizers[:, None]  # [N, V]
    probabilities = np.exp(logs)
    logs[probabilities == 0] = 0  # 0 · log 0 is 0, also for a logit of -inf
    listed = np.zeros((len(ids), min(top, choices.shape[1])), np.int64)
    for row in rows if top else ():
        best = top_k_ids(choices[row], listed.shape[1])
        listed[row] = best[np.argsort(-choices[row][best], kind="stable")]
    return TokenScores(
        logprobs=chosen.astype(np.float64) - normalizers,
        entropies=-(probabilities * logs).sum(axis=1),
        ranks=(choices > chosen[:, None]).sum(axis=1),
        top_ids=listed,
        top_logprobs=np.take_along_axis(choices, listed, axis=1).astype(np.float64) - normalizers[:, None],
        groups=np.zeros((len(ids), 0)) if groups is None else _group_logprobs(probabilities, groups),
    )


def _group_logprobs(probabilities: npt.NDArray[np.float64], groups: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the log-probability of each group of tokens, [N, V] and [G, V] to [N, G]; -inf if it is 0."""
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float64] = np.log(probabilities @ groups.T)
    return found


def empty_scores(n: int, top: int, n_groups: int) -> TokenScores:
    """Allocate the scores of n targets, each with `top` tokens and `n_groups` groups."""
    return TokenScores(
        np.empty(n),
        np.empty(n),
        np.empty(n, np.int64),
        np.empty((n, top), np.int64),
        np.empty((n, top)),
        np.empty((n, n_groups)),
    )


def slice_scores(scores: TokenScores, first: int, last: int) -> TokenScores:
    """Return the scores of the targets from `first` to before `last`, as views."""
    return TokenScores(
        scores.logprobs[first:last],
        scores.entropies[first:last],
        scores.ranks[first:last],
        scores.top_ids[first:last],
        scores.top_logprobs[first:last],
        scores.groups[first:last],
    )


def join_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """Concatenate the scores of consecutive tokens."""
    if len(parts) == 1:
        return parts[0]
    return TokenScores(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
