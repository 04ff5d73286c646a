"""Time a Runner: prompts, and decoding, alone and in batches.

Speed does not depend on the tokens, so they are random.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.runner import Runner, Slot

PROMPTS = (32, 128, 512)
BATCHES = (1, 2, 4, 8, 16)
SHORTEST = 32
"""The shortest context length that can be measured."""


_STEPS = 12  # decoded tokens per figure


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed for a model.

    Attributes:
        prompts: lengths, in tokens.
        contexts: how many tokens a sequence has before the timed ones.
        batches: how many sequences are decoded together; 1 comes first.
        long_batches: whether that is timed after each context, and not only after `usual_context`.
        prompt_runs: how often a prompt is run.
        steps: how many tokens are decoded for each figure.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    long_batches: bool
    prompt_runs: int = 5
    steps: int = _STEPS

    @classmethod
    def of(cls, config: GPTConfig, quick: bool) -> Workload:
        """Return the usual work, or the quicker part of it.

        Raises:
            InputError: if the context is too short.
        """
        length = config.context_length
        if length < SHORTEST:
            raise InputError(f"the model's context is {length} tokens; measuring takes one of at least {SHORTEST}.")
        latest = length - 2 * _STEPS
        contexts = {min(context, latest) for context in ((128, latest) if quick else (16, 128, length // 2, latest))}
        prompts = [n for n in ((512,) if quick else PROMPTS) if n < length] or [length // 2]
        return cls(tuple(prompts), tuple(sorted(contexts)), (1, 8) if quick else BATCHES, not quick)

    @property
    def usual_context(self) -> int:
        """128 tokens, or the nearest context."""
        return min(self.contexts, key=lambda context: abs(context - 128))

    def batches_after(self, context: int) -> tuple[int, ...]:
        """Return the batch sizes after a context, without 1."""
        return self.batches[1:] if self.long_batches or context == self.usual_context else ()

    @property
    def figures(self) -> int:
        """The number of figures."""
        together = sum(len(self.batches_after(context)) for context in self.contexts)
        return len(self.prompts) + len(self.contexts) + together


@dataclass(frozen=True, slots=True)
class Figure:
    """The speed of one kind of work.

    Attributes:
        kind: "prompt" or "decode".
        context: tokens of a prompt, or tokens before the decoded ones.
        batch: sequences that run together.
        seconds: the median time of a prompt, or of one token of every sequence.
        least_seconds: the shortest.
    """

    kind: str
    context: int
    batch: int
    seconds: float
    least_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all sequences, from the median."""
        return (self.context if self.kind == "prompt" else self.batch) / self.seconds

    @property
    def most_tokens_per_second(self) -> float:
        """Tokens per second of all sequences, from the shortest time."""
        return (self.context if self.kind == "prompt" else self.batch) / self.least_seconds


def time_alone(runner: Runner, work: Workload) -> Iterator[Figure]:
    """Time prompts, and decoding one sequence after each context."""
    for length in work.prompts:
        times = []
        for _ in range(work.prompt_runs):
            slot = runner.open()
            times.append(_extend(runner, [slot], length))
            runner.close(slot)
        yield _figure("prompt", length, 1, times)
    for context, slots in _grown(runner, 1, work.contexts):
        yield _decode(runner, slots, context, work.steps)


def time_together(runner: Runner, work: Workload) -> Iterator[Figure]:
    """Time decoding several sequences together, after each context that is asked for."""
    contexts = [context for context in work.contexts if work.batches_after(context)]
    for context, slots in _grown(runner, max(work.batches), contexts):
        # All together first. Each smaller batch takes others of them, so that none grows by more than twice the steps.
        first = 0
        for batch in sorted(work.batches_after(context), reverse=True):
            if batch == len(slots):
                yield _decode(runner, slots, context, work.steps)
            else:
                yield _decode(runner, slots[first : first + batch], context, work.steps)
                first += batch


def _grown(runner: Runner, count: int, contexts: Sequence[int]) -> Iterator[tuple[int, list[Slot]]]:
    """Yield sequences of each context length in turn: the ones from before, grown, or new ones."""
    slots: list[Slot] = []
    for context in contexts:
        if not slots or max(slot.length for slot in slots) > context:
            for slot in slots:
                runner.close(slot)
            slots = [runner.open() for _ in range(count)]
        for slot in slots:
            if slot.length < context:
                _extend(runner, [slot], context - slot.length)
        yield context, slots
    for slot in slots:
        runner.close(slot)


def _decode(runner: Runner, slots: Sequence[Slot], context: int, steps: int) -> Figure:
    return _figure("decode", context, len(slots), [_extend(runner, slots, 1) for _ in range(steps)])


def _extend(runner: Runner, slots: Sequence[Slot], count: int) -> float:
    """Append `count` tokens to each sequence and return the seconds that it took."""
    work = [(slot, [random.randrange(runner.config.vocab_size) for _ in range(count)]) for slot in slots]
    start = time.perf_counter()
    runner.extend(work)
    return time.perf_counter() - start


def _figure(kind: str, context: int, batch: int, times: list[float]) -> Figure:
    return Figure(kind, context, batch, statistics.median(times), min(times))
