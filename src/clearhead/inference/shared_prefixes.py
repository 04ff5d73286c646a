"""Run a common prefix of several sequences only once: each sequence continues a fork of one that has run it.

Minimal pairs differ in a word, and the endings of a question share its context. Sorted sequences with a common prefix
are adjacent, and the first of them runs it. A sequence may continue one that itself continues another, so a batch takes
several rounds: each runs all sequences whose prefix has run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clearhead.inference.logprobs import join_scores, slice_scores
from clearhead.inference.runner import ScoreTask, ScoringRunner, Slot, TokenScores

LEAST_SHARED = 3
"""A shorter common prefix costs more to fork than to run again."""


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """Tokens to run, and which of them to score.

    Attributes:
        ids: the tokens; the last one is only a target, the others run.
        scored: the index of the first token to score, at least 1.
    """

    ids: Sequence[int]
    scored: int


@dataclass(frozen=True, slots=True)
class ScoreDetails:
    """What to return for each scored token; see `ScoringRunner.score`."""

    top: int = 0
    n_choices: int | None = None
    groups: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """How a sequence runs.

    Attributes:
        parent: the index of the sequence that it continues; -1 if none.
        shared: how many tokens it takes from the parent.
        round: in which round it runs.
    """

    parent: int
    shared: int
    round: int


def plan_branches(sequences: Sequence[ScoredSequence]) -> list[Branch]:
    """Return how each sequence runs, for sequences in the order of their tokens."""
    plan: list[Branch] = []
    path: list[tuple[int, int]] = []  # where each stretch of the last sequence begins, and which sequence runs it
    before: Sequence[int] = ()
    for index, sequence in enumerate(sequences):
        # A target's own token need not run: its score comes from the one before it.
        shared = max(0, _common_length(before, sequence.ids) - 1)
        before = sequence.ids
        _drop_from(path, shared)
        if path and sequence.scored < sequences[path[-1][1]].scored:
            shared = min(shared, sequence.scored - 1)  # the parent has not scored all that this one needs
            _drop_from(path, shared)
        if not path or shared < LEAST_SHARED:
            plan.append(Branch(-1, 0, 0))
            path = [(0, index)]
            continue
        parent = path[-1][1]
        plan.append(Branch(parent, shared, plan[parent].round + 1))
        path.append((shared, index))
    return plan


def _drop_from(path: list[tuple[int, int]], length: int) -> None:
    """Remove the stretches that begin at or after token `length`."""
    while path and path[-1][0] >= length:
        path.pop()


def score_sharing(
    runner: ScoringRunner, sequences: Sequence[ScoredSequence], details: ScoreDetails, batch_size: int
) -> list[TokenScores]:
    """Score sequences, running common prefixes once.

    Args:
        runner: runs the model.
        sequences: sorted by their tokens, so that common prefixes are adjacent.
        details: what to return for each token.
        batch_size: how many run in one call.

    Returns:
        the scores of each sequence's tokens from `scored` on.
    """
    plan = plan_branches(sequences)
    children = [0] * len(sequences)
    for branch in plan:
        if branch.parent >= 0:
            children[branch.parent] += 1
    found: list[TokenScores | None] = [None] * len(sequences)
    slots: dict[int, Slot] = {}
    try:
        for indices in _batches_by_round(plan, batch_size):
            work = []
            for index in indices:
                slots[index] = _open_slot(runner, plan[index], slots, children)
                task = _score_task(slots[index], sequences[index], plan[index].shared)
                if task.ids:  # otherwise the parent has run and scored all of it
                    work.append((index, task))
            new: dict[int, TokenScores] = {}
            if work:
                _, scores = runner.score(
                    [task for _, task in work],
                    top=details.top,
                    n_choices=details.n_choices,
                    groups=details.groups,
                    last_logits=False,
                )
                new = dict(zip((index for index, _ in work), scores, strict=True))
            for index in indices:
                found[index] = _merge_scores(index, plan[index], sequences, found, new.get(index))
                if not children[index]:
                    runner.close(slots.pop(index))
    finally:
        for slot in slots.values():
            runner.close(slot)
    return [scores for scores in found if scores is not None]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _batches_by_round(plan: Sequence[Branch], batch_size: int) -> Iterator[list[int]]:
    """Yield the sequences of each call: those of one round, at most `batch_size`."""
    for number in range(1 + max((branch.round for branch in plan), default=-1)):
        indices = [index for index, branch in enumerate(plan) if branch.round == number]
        for first in range(0, len(indices), batch_size):
            yield indices[first : first + batch_size]


def _open_slot(runner: ScoringRunner, branch: Branch, slots: dict[int, Slot], children: list[int]) -> Slot:
    """Open a sequence's slot, and close the parent's if no other sequence continues it."""
    if branch.parent < 0:
        return runner.open()
    slot = runner.fork(slots[branch.parent], branch.shared)
    children[branch.parent] -= 1
    if not children[branch.parent]:
        runner.close(slots.pop(branch.parent))
    return slot


def _score_task(slot: Slot, sequence: ScoredSequence, shared: int) -> ScoreTask:
    target = max(sequence.scored, shared + 1)  # the first token whose score is not inherited
    return ScoreTask(slot, sequence.ids[shared:-1], sequence.ids[target:], target - 1 - shared)


def _merge_scores(
    index: int,
    branch: Branch,
    sequences: Sequence[ScoredSequence],
    found: Sequence[TokenScores | None],
    new: TokenScores | None,
) -> TokenScores:
    """Return a sequence's scores: inherited ones for the shared tokens, then its own."""
    parts = [] if new is None else [new]
    scored = sequences[index].scored
    if branch.parent >= 0 and branch.shared >= scored:
        inherited = found[branch.parent]
        assert inherited is not None  # the parent has run in an earlier round
        first = sequences[branch.parent].scored
        parts.insert(0, slice_scores(inherited, scored - first, branch.shared + 1 - first))
    return join_scores(parts)
