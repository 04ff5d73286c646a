"""Run a common prefix of several sequences only once: each sequence continues a fork of one that has run it.

Minimal pairs differ in a word, and the endings of a question share its context. Sorted sequences with a common prefix
are adjacent, and the first of them runs it, and scores the token with which each of the others goes on differently. A
sequence may continue one that itself continues another. A call of the
Runner takes any sequences whose prefix has run: first those that continue the latest ones, so that few are open at a
time, then further ones from the list, so that calls are full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clearhead.inference.logprobs import join_scores, slice_scores
from clearhead.inference.runner import ScoreTask, ScoringRunner, Slot, TokenScores


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
class OpenLimits:
    """How many sequences run in one call, and how many tokens may be open.

    Attributes:
        sequences: at most so many run in one call.
        tokens: in all open sequences together; a single sequence may always be open.
        page: a sequence's memory grows by this many tokens.
    """

    sequences: int
    tokens: int
    page: int

    def memory(self, sequence: ScoredSequence) -> int:
        """Return the tokens for which a sequence needs memory."""
        return -(-len(sequence.ids) // self.page) * self.page


@dataclass(frozen=True, slots=True)
class Branch:
    """How a sequence runs.

    Attributes:
        parent: the index of the sequence that it continues; -1 if none.
        shared: how many tokens it takes from the parent.
    """

    parent: int
    shared: int


def plan_branches(sequences: Sequence[ScoredSequence]) -> list[Branch]:
    """Return how each sequence runs, for sequences in the order of their tokens."""
    plan: list[Branch] = []
    path: list[tuple[int, int]] = []  # where each stretch of the last sequence begins, and which sequence runs it
    before: Sequence[int] = ()
    for index, sequence in enumerate(sequences):
        # The last token of a sequence does not run, and the common ones have the same tokens before them.
        shared = min(_common_length(before, sequence.ids), len(before) - 1, len(sequence.ids) - 1)
        before = sequence.ids
        _drop_from(path, shared)
        if path and sequence.scored < sequences[path[-1][1]].scored:
            shared = min(shared, sequence.scored)  # the parent has not scored all that this one needs
            _drop_from(path, shared)
        if not path or not shared:
            plan.append(Branch(-1, 0))
            path = [(0, index)]
            continue
        parent = path[-1][1]
        plan.append(Branch(parent, shared))
        path.append((shared, index))
    return plan


def _drop_from(path: list[tuple[int, int]], length: int) -> None:
    """Remove the stretches that begin at or after token `length`."""
    while path and path[-1][0] >= length:
        path.pop()


def score_sharing(
    runner: ScoringRunner, sequences: Sequence[ScoredSequence], details: ScoreDetails, limits: OpenLimits
) -> Iterator[tuple[int, TokenScores]]:
    """Score sequences, running common prefixes once.

    Args:
        runner: runs the model.
        sequences: sorted by their tokens, so that common prefixes are adjacent.
        details: what to return for each token.
        limits: how much runs and is open at a time.

    Yields:
        the index of each sequence, as soon as it has run, and the scores of its tokens from `scored` on.
    """
    forest = _Forest(runner, sequences, limits)
    try:
        while batch := forest.next_batch():
            work = []
            for index in batch:
                task = forest.open(index)
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
            for index in batch:
                yield index, forest.finish(index, new.get(index))
    finally:
        forest.close()


class _Forest:
    """Which sequences have run, which may run next, and the slots of those that others continue.

    Args:
        runner, sequences, limits: as in `score_sharing`.
    """

    def __init__(self, runner: ScoringRunner, sequences: Sequence[ScoredSequence], limits: OpenLimits) -> None:
        self._runner, self._sequences, self._limits = runner, sequences, limits
        self._plan = plan_branches(sequences)
        self._children: list[list[int]] = [[] for _ in sequences]
        self._ready: list[int] = []  # the next one last
        for index in range(len(sequences) - 1, -1, -1):
            parent = self._plan[index].parent
            (self._ready if parent < 0 else self._children[parent]).append(index)
        self._unopened = [len(children) for children in self._children]
        self._open: dict[int, tuple[Slot, int]] = {}  # slots, and the tokens for which they need memory
        self._open_tokens = 0
        self._inherited: dict[int, list[TokenScores]] = {}  # those that a parent computed, until a sequence has run

    def next_batch(self) -> list[int]:
        """Take the sequences of the next call; none if all have run."""
        batch: list[int] = []
        tokens = self._open_tokens
        while self._ready and len(batch) < self._limits.sequences:
            tokens += self._limits.memory(self._sequences[self._ready[-1]])
            if batch and tokens > self._limits.tokens:
                break
            batch.append(self._ready.pop())
        return batch

    def open(self, index: int) -> ScoreTask:
        """Open a sequence's slot and return what it has to run."""
        branch, sequence = self._plan[index], self._sequences[index]
        slot = self._runner.open() if branch.parent < 0 else self._fork(index)
        memory = self._limits.memory(sequence)
        self._open[index] = slot, memory
        self._open_tokens += memory
        target = max(sequence.scored, branch.shared + 1)  # the first token whose score is not inherited
        return ScoreTask(
            slot,
            sequence.ids[branch.shared : -1],
            sequence.ids[target:],
            target - 1 - branch.shared,
            [self._alternative(child, branch.shared) for child in self._scored_children(index)],
        )

    def _scored_children(self, index: int) -> list[int]:
        """Return the sequences whose first token of their own is scored by the sequence that they continue."""
        return [one for one in self._children[index] if self._plan[one].shared >= self._sequences[one].scored]

    def _alternative(self, child: int, start: int) -> tuple[int, int]:
        """Return where a child's first own token follows, among tokens from `start` on, and that token."""
        shared = self._plan[child].shared
        return shared - 1 - start, self._sequences[child].ids[shared]

    def _fork(self, index: int) -> Slot:
        parent, shared = self._plan[index].parent, self._plan[index].shared
        slot = self._runner.fork(self._open[parent][0], shared)
        self._unopened[parent] -= 1
        self._close_if_done(parent)  # before the fork runs, which then has the memory for itself and copies nothing
        return slot

    def finish(self, index: int, new: TokenScores | None) -> TokenScores:
        """Return a sequence's scores: inherited ones for the shared tokens and the next one, then its own."""
        children = self._scored_children(index)
        count = 0 if new is None else len(new.logprobs) - len(children)
        parts = self._inherited.pop(index, [])
        scores = join_scores(parts if new is None else [*parts, slice_scores(new, 0, count)])
        if new is not None:
            for place, child in enumerate(children, count):
                self._inherited[child] = self._for_child(index, child, scores, slice_scores(new, place, place + 1))
        self._ready += self._children[index]
        self._close_if_done(index)
        return scores

    def _for_child(self, index: int, child: int, scores: TokenScores, next_one: TokenScores) -> list[TokenScores]:
        """Return a child's scores of the shared tokens and the next one."""
        first, last = self._sequences[child].scored, self._plan[child].shared
        if first == last:
            return [next_one]
        start = self._sequences[index].scored
        return [slice_scores(scores, first - start, last - start), next_one]

    def _close_if_done(self, index: int) -> None:
        """Close a sequence that none continues any more."""
        if not self._unopened[index]:
            slot, memory = self._open.pop(index)
            self._runner.close(slot)
            self._open_tokens -= memory

    def close(self) -> None:
        """Close all slots."""
        for slot, _ in self._open.values():
            self._runner.close(slot)
        self._open.clear()


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
