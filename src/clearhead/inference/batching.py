"""Continuous batching: continuations join and leave a running batch between tokens.

`generate` and `stream` put all of their continuations into a `Batch` and run it to the end. The scheduler of the
server adds and cancels some while others run. A Runner's results for a sequence do not depend on what else is in the
batch, so neither do the texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError
from clearhead.inference.continuation import Continuation
from clearhead.inference.declaration import is_whole
from clearhead.inference.prefix_cache import PrefixCache
from clearhead.inference.requests import Event
from clearhead.inference.runner import Runner, ScoreTask, ScoringRunner, Slot, TokenScores

MAX_LIVE = 32
"""How many sequences run together unless the caller says otherwise; each has a cache in memory."""

Logits = npt.NDArray[np.float32]


@dataclass(eq=False)
class Group:
    """The samples of one request: they share a prompt, which runs once.

    Attributes:
        entries: one for each sample.
        score_top: score the prompt too, and list this many of the most likely tokens at each position; None for no
            scores.
        prompt_scores: the scores of the prompt's tokens from the second on, in pieces, as they are computed.
        cached_tokens: how many tokens of the prompt the prefix cache had.
    """

    entries: list[Entry] = field(default_factory=list)
    score_top: int | None = None
    prompt_scores: list[TokenScores] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_slot: Slot | None = None
    prompt_logits: Logits | None = None


@dataclass(eq=False)
class Entry:
    """One continuation in a batch.

    Attributes:
        continuation: decides which ids run.
        group: the samples of the same request.
        slot: its sequence; None while it waits, and when it has ended.
        remaining: the ids that are to run before the continuation gets logits.
    """

    continuation: Continuation
    group: Group
    slot: Slot | None = None
    remaining: Sequence[int] = ()


Piece = tuple[Entry, Sequence[int]]
"""An entry and the ids that it runs next."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step for one continuation: an event, or the error that ended it."""

    entry: Entry
    event: Event | None = None
    error: Exception | None = None


class Batch:
    """Run continuations together, token by token.

    Args:
        runner: runs the model; a `ScoringRunner` if a group is to be scored.
        max_live: how many sequences run together at most; the others wait.
        prompt_tokens: how many tokens of prompts run in a step at most, so that long prompts do not hold up the next
            tokens of others; None for no limit.
        prefix_cache: sequences to begin from; None for none.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_live: int = MAX_LIVE,
        prompt_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        if not is_whole(max_live) or max_live < 1:
            raise InputError(f"max_live is {max_live!r}; give a whole number of at least 1.")
        self._runner = runner
        self._max_live = max_live
        self._prompt_tokens = prompt_tokens
        self._prefix_cache = prefix_cache
        self._waiting: deque[Entry] = deque()
        self._live: list[Entry] = []
        self._full = False  # the Runner's memory: nothing starts until something ends

    @property
    def running(self) -> int:
        """The number of continuations that run."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """The number of continuations that wait for others to end."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything to run."""
        return bool(self._live or self._waiting)

    def add(self, continuations: Sequence[Continuation], score_top: int | None = None) -> Group:
        """Add the samples of one request; the next step runs them if there is room.

        Args:
            continuations: new ones with the same prompt.
            score_top: as the attribute of `Group`.
        """
        group = Group(score_top=score_top)
        group.entries = [Entry(one, group) for one in continuations]
        self._waiting.extend(group.entries)
        return group

    def cancel(self, group: Group) -> None:
        """End the samples of a request now, and free their memory."""
        self._waiting = deque(entry for entry in self._waiting if entry.group is not group)
        for entry in [entry for entry in self._live if entry.group is group]:
            self._end(entry)
        self._release_prompt(group)

    def close(self) -> None:
        """Cancel everything."""
        for entry in [*self._waiting, *self._live]:
            self.cancel(entry.group)

    def step(self) -> list[Outcome]:
        """Run one token of each continuation, or a piece of its prompt, and return what came of it."""
        outcomes = [*self._admit()]
        plain: list[Piece] = []
        scored: list[Piece] = []
        budget = self._prompt_tokens
        for entry in self._live:
            ids = entry.remaining
            if len(ids) > 1 and budget is not None:
                ids = ids[: max(0, budget)]
                budget -= len(ids)
            if ids:
                in_prompt = entry.group.score_top is not None and not entry.continuation.ids
                (scored if in_prompt else plain).append((entry, ids))
        for ran in (self._extend(plain, outcomes), self._score(scored, outcomes)):
            for entry, ids, logits in ran:
                entry.remaining = entry.remaining[len(ids) :]
                if not entry.remaining:
                    outcomes += self._take(entry, logits)
        return outcomes

    def _admit(self) -> Iterator[Outcome]:
        """Start waiting continuations while there is room."""
        held: list[Entry] = []
        while self._waiting and len(self._live) < self._max_live and not self._full:
            entry = self._waiting.popleft()
            group = entry.group
            if entry.continuation.ids:
                self._start(entry)  # again
            elif group.prompt_logits is not None:
                yield from self._start_from_prompt(entry)
            elif any(other.group is group for other in self._live):
                held.append(entry)  # its prompt is running
            else:
                self._start(entry)
        self._waiting.extendleft(reversed(held))

    def _start(self, entry: Entry) -> None:
        ids: Sequence[int] = list(entry.continuation.window)
        beginning = None
        if self._prefix_cache is not None and (entry.group.score_top is None or entry.continuation.ids):
            live = [(other.continuation.window, other.slot) for other in self._live if other.slot is not None]
            beginning = self._prefix_cache.find(ids, live)
        if beginning is None:
            entry.slot = self._runner.open()
        else:
            entry.slot = self._runner.fork(beginning.slot, beginning.length)
            if not entry.continuation.ids:
                entry.group.cached_tokens = beginning.length
            ids = ids[beginning.length :]
        entry.remaining = ids
        self._live.append(entry)

    def _start_from_prompt(self, entry: Entry) -> Iterator[Outcome]:
        """Start a sample whose prompt has run for another sample."""
        group = entry.group
        assert group.prompt_slot is not None and group.prompt_logits is not None
        entry.slot = self._runner.fork(group.prompt_slot)
        self._live.append(entry)
        yield from self._accept(entry, group.prompt_logits)
        if not any(other.group is group for other in self._waiting):
            self._release_prompt(group)

    def _take(self, entry: Entry, logits: Logits) -> Iterator[Outcome]:
        group = entry.group
        if not entry.continuation.ids and any(other.group is group for other in self._waiting):
            assert entry.slot is not None
            group.prompt_slot, group.prompt_logits = self._runner.fork(entry.slot), logits.copy()
        yield from self._accept(entry, logits)
        if group.prompt_logits is not None and group.prompt_slot is not None:
            yield from self._admit()

    def _accept(self, entry: Entry, logits: Logits) -> Iterator[Outcome]:
        try:
            event = entry.continuation.accept(logits)
        except Exception as error:  # a fault in one text must not end the others
            self._end(entry)
            yield Outcome(entry, error=error)
            return
        if event.finish_reason is not None:
            self._end(entry)
        else:
            self._prepare(entry)
        yield Outcome(entry, event)

    def _prepare(self, entry: Entry) -> None:
        """Queue the ids that the continuation needs next; after a full context, open a new sequence."""
        feed = entry.continuation.feed
        if feed.fresh:
            assert entry.slot is not None
            self._runner.close(entry.slot)
            entry.slot = self._runner.open()
        entry.remaining = feed.ids

    def _end(self, entry: Entry) -> None:
        self._live.remove(entry)
        self._full = False
        slot, entry.slot = entry.slot, None
        assert slot is not None
        if self._prefix_cache is not None and slot.length:
            self._prefix_cache.add(entry.continuation.window, slot)
        else:
            self._runner.close(slot)

    def _release_prompt(self, group: Group) -> None:
        slot, group.prompt_slot, group.prompt_logits = group.prompt_slot, None, None
        if slot is not None:
            self._runner.close(slot)

    def _extend(self, work: Sequence[Piece], outcomes: list[Outcome]) -> Iterator[tuple[Entry, Sequence[int], Logits]]:
        """Run pieces of sequences together; yield those that ran, with their logits."""
        while pairs := [(entry.slot, ids) for entry, ids in work if entry.slot is not None]:
            work = [(entry, ids) for entry, ids in work if entry.slot is not None]
            try:
                rows = self._runner.extend(pairs)
            except InputError as error:
                outcomes += self._make_room(error)
                continue
            yield from ((entry, ids, logits) for (entry, ids), logits in zip(work, rows, strict=True))
            return

    def _score(self, work: Sequence[Piece], outcomes: list[Outcome]) -> Iterator[tuple[Entry, Sequence[int], Logits]]:
        """Run pieces of prompts and score them, one request at a time: each may list another number of tokens."""
        for entry, ids in work:
            top = entry.group.score_top
            assert top is not None
            while entry.slot is not None:
                task = ScoreTask(entry.slot, ids, entry.remaining[1 : len(ids) + 1])
                try:
                    runner = as_scoring(self._runner)
                    logits, scores = runner.score([task], top=top, n_choices=entry.continuation.n_choices)
                except InputError as error:
                    outcomes += self._make_room(error)
                    continue
                entry.group.prompt_scores += scores
                yield entry, ids, logits[0]
                break

    def _make_room(self, error: InputError) -> Iterator[Outcome]:
        """Free memory after the Runner refused tokens, possibly because its key/value cache is full.

        Ended sequences are closed first, then prompts kept for further samples. Then the newest text is preempted: it
        restarts after another has ended, with the same result. A text that does not fit alone fails with the error.
        """
        if self._prefix_cache is not None and self._prefix_cache.drop_oldest():
            return
        kept = [entry.group for entry in self._waiting if entry.group.prompt_slot is not None]
        if kept:
            self._release_prompt(kept[0])
            return
        newest = self._live[-1]
        if len(self._live) == 1:
            self._end(newest)
            yield Outcome(newest, error=error)
            return
        self._live.pop()
        slot, newest.slot = newest.slot, None
        assert slot is not None
        self._runner.close(slot)
        if not newest.continuation.ids:
            newest.group.prompt_scores.clear()
        self._waiting.appendleft(newest)
        self._full = True


def as_scoring(runner: Runner) -> ScoringRunner:
    """Return a Runner that also scores.

    Raises:
        InputError: if this one does not.
    """
    if not hasattr(runner, "score"):
        raise InputError("this runner does not score prompts; use one that does.")
    return runner  # type: ignore[return-value]
