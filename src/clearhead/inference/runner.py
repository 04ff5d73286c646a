"""The contract between the code that runs a model and the code that generates with it.

Everything that generates or scores goes through a `Runner`: generation, `GPT.score`, evaluation and the server. There
are two implementations, `torch_runner.TorchRunner` (the reference, on any device) and `engine.runner.EngineRunner`
(compiled for the CPU). A Runner keeps the keys and values of each open sequence, so that a token is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import InputError


class Slot(Protocol):
    """One growing sequence inside a Runner. Only the Runner that opened it knows what is inside."""

    @property
    def length(self) -> int:
        """The number of tokens in the sequence so far."""


class Runner(Protocol):
    """Run a GPT over growing sequences and keep their keys and values.

    The results for a sequence do not depend on what else is in the batch, nor on how its tokens were divided among
    calls (to rounding: 1e-4 in the logits; the compiled engine gives the same bits).
    """

    @property
    def config(self) -> GPTConfig:
        """The shape of the model."""

    def open(self) -> Slot:
        """Open a new, empty sequence."""

    def fork(self, slot: Slot, length: int | None = None) -> Slot:
        """Open a new sequence with the tokens of an open one, or with its first `length` tokens.

        A Runner may let the two share what is cached until one of them grows. From then on each gives what it would
        give had it been run alone, and closing one does not affect the other.

        Raises:
            InputError: if the slot is closed, or has fewer tokens.
        """

    def close(self, slot: Slot) -> None:
        """Forget a sequence and free its memory. Closing a slot twice does nothing; it cannot be used again."""

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> npt.NDArray[np.float32]:
        """Append tokens to each sequence and return the logits after each one's last token.

        Args:
            work: pairs of a slot and the ids to append, at least one each; no slot twice.

        Returns:
            float32 [len(work), V]

        Raises:
            InputError: if ids are missing or outside the vocabulary, a sequence would grow past
                `config.context_length`, or a slot is closed or appears twice in `work`. Nothing has changed then.
        """


class ScoreTask(NamedTuple):
    """Tokens to append to a sequence, and the tokens that really follow some of them.

    Attributes:
        slot: the sequence.
        ids: the tokens to append, at least one.
        targets: `targets[i]` is scored by the distribution after `ids[start + i]`; at most `len(ids) - start` of them.
        start: the index in `ids` of the first token that has a target.
        alternatives: further targets, pairs of an index in `ids` and a token that follows there in another text. Their
            scores come after those of `targets`, in the given order.

    To score a text from its second token on, `ids` is the text and `targets` is `text[1:]`. A text may be scored in
    several calls, with the target of a call's last token being the first of the next call.
    """

    slot: Slot
    ids: Sequence[int]
    targets: Sequence[int]
    start: int = 0
    alternatives: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What the model gives each of N target tokens, in nats.

    Attributes:
        logprobs: float64 [N], the log-probability of each target.
        entropies: float64 [N], the entropy of the distribution that each target comes from.
        ranks: int64 [N], how many tokens are more likely than the target; 0 if it is the most likely one.
        top_ids: int64 [N, top], the most likely tokens, the best first; of equal ones the lower id first.
        top_logprobs: float64 [N, top], their log-probabilities.
        groups: float64 [N, G], the log-probability that the next token is in each group of tokens that was given.
    """

    logprobs: npt.NDArray[np.float64]
    entropies: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float64]
    groups: npt.NDArray[np.float64]


class ScoringRunner(Runner, Protocol):
    """A Runner that also scores every token of a text."""

    def score(
        self,
        work: Sequence[ScoreTask],
        *,
        top: int = 0,
        n_choices: int | None = None,
        groups: npt.NDArray[np.bool_] | None = None,
        last_logits: bool = True,
    ) -> tuple[npt.NDArray[np.float32], list[TokenScores]]:
        """Append tokens to each sequence and score the targets, without holding the logits of all tokens.

        Args:
            work: at least one task; no slot twice.
            top: how many of the most likely tokens to return at each position.
            n_choices: count only ids below this in ranks and top, for a tokenizer with fewer tokens than the model has
                rows; None for all. Probabilities are always among all rows.
            groups: sets of tokens, bool [G, V], whose probabilities are wanted at each target's position.
            last_logits: whether the logits after each task's last token are wanted.

        Returns:
            the logits after each task's last token, float32 [len(work), V], as `extend` returns them, or none of them,
            [0, V]; and the scores of each task's targets and alternatives.

        Raises:
            InputError: as `extend`; or if a target is outside the vocabulary, or there are more targets than tokens.
        """

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits at every token of a whole sequence, which is not kept: float32 [T, V].

        Raises:
            InputError: as `extend`.
        """


def check_fork(slot: KnownSlot, length: int | None) -> int:
    """Check what `Runner.fork` is given, and return the number of tokens of the new sequence.

    Raises:
        InputError: as `Runner.fork`.
    """
    if not slot.open:
        raise InputError("this sequence was closed; open a new one.")
    if length is not None and not 0 <= length <= slot.length:
        raise InputError(f"length is {length:,}, but the sequence has {slot.length:,} tokens; give at most as many.")
    return slot.length if length is None else length


class KnownSlot(Slot, Protocol):
    """A slot as its own Runner sees it."""

    open: bool


def check_work(config: GPTConfig, work: Sequence[tuple[KnownSlot, Sequence[int] | npt.NDArray[np.int64]]]) -> None:
    """Check what `Runner.extend` is given, before anything changes.

    Raises:
        InputError: as `Runner.extend`.
    """
    if len({id(slot) for slot, _ in work}) < len(work):
        raise InputError("a sequence appears twice in one call; give all of its new tokens together.")
    for slot, ids in work:
        if not slot.open:
            raise InputError("this sequence was closed; open a new one.")
        if not len(ids):
            raise InputError("there are no tokens to run; give at least one.")
        if slot.length + len(ids) > config.context_length:
            raise InputError(
                f"{slot.length + len(ids):,} tokens do not fit into the model's context of "
                f"{config.context_length:,}; shorten the sequence."
            )
        check_token_ids(ids, config.vocab_size)


def check_score_work(config: GPTConfig, work: Sequence[tuple[KnownSlot, ScoreTask]]) -> None:
    """Check what `ScoringRunner.score` is given, before anything changes.

    Raises:
        InputError: as `ScoringRunner.score`.
    """
    check_work(config, [(slot, task.ids) for slot, task in work])
    for _, task in work:
        if task.start < 0 or task.start + len(task.targets) > len(task.ids):
            raise InputError(
                f"{len(task.targets):,} targets from token {task.start:,} on are more than the {len(task.ids):,} "
                "tokens that they follow; give at most one target for each token."
            )
        check_token_ids(task.targets, config.vocab_size)
        check_token_ids([token for _, token in task.alternatives], config.vocab_size)
        if not all(0 <= index < len(task.ids) for index, _ in task.alternatives):
            raise InputError(
                f"an alternative follows a token that is not among the {len(task.ids):,} of its sequence; give indices "
                "of these tokens."
            )


def check_token_ids(ids: Sequence[int] | npt.NDArray[np.int64], vocab_size: int, what: str = "") -> None:
    """Check that every id is in the vocabulary.

    Args:
        ids: any number of token ids.
        vocab_size: the model's V.
        what: where the ids come from, for the message, such as "the prompt".

    Raises:
        InputError: if one is not.
    """
    numbers = np.asarray(ids)
    if not numbers.size or (numbers.min() >= 0 and numbers.max() < vocab_size):
        return
    outside = next((token for token in ids if not 0 <= token < vocab_size), None)
    if outside is not None:
        found = f"{what} contains token {outside}, which" if what else f"token id {outside}"
        raise InputError(
            f"{found} is not in the model's vocabulary of {vocab_size:,} tokens; give ids from 0 to {vocab_size - 1}."
        )
