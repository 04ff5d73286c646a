"""How tasks score texts: pairs of a context and a continuation, and one text by sliding windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.errors import InputError
from clearhead.evaluation.results import Metric, TaskResult, perplexity
from clearhead.gpt import GPT
from clearhead.inference.scoring import ScoreOptions, ScoreRequest, score_sequences
from clearhead.tokenizer import Tokenizer
from clearhead.utils.progress import Progress

_BUFFERED_TOKENS = 1 << 22  # the results of a task are wanted together, so nearly all of its texts are sorted together


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task runs.

    Attributes:
        limit: evaluate only this many items; None for all.
        stride: tokens that each window after the first scores; None for half the context.
        bos: put the end-of-text token before every context. An empty context is that token in any case.
    """

    limit: int | None = None
    stride: int | None = None
    bos: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """The score of one continuation.

    Attributes:
        logprob: of the continuation, in nats.
        greedy: whether every token of it is the most likely one.
    """

    logprob: float
    greedy: bool


class PairScorer:
    """Scores pairs of a context and a continuation, encoded as lm-evaluation-harness encodes them.

    Args:
        gpt: the model, with its tokenizer.
        options: how the task runs.

    Raises:
        InputError: if the model has no tokenizer.
    """

    def __init__(self, gpt: GPT, options: TaskOptions) -> None:
        if gpt.tokenizer is None:
            raise InputError("this model has no tokenizer; put its files (tokenizer.json) next to the weights.")
        self.gpt, self.options = gpt, options
        self.tokenizer: Tokenizer = gpt.tokenizer

    def score(self, pairs: Sequence[tuple[str, str]], what: str) -> list[ChoiceScore]:
        """Return the score of each pair's continuation, in order.

        Raises:
            InputError: if a continuation adds no token.
        """
        found = []
        with Progress(what, len(pairs)) as progress:
            options = ScoreOptions(buffered_tokens=_BUFFERED_TOKENS)
            requests = map(self._request, pairs)
            for one in score_sequences(self.gpt.runner, requests, options, lambda: progress.advance(1)):
                scores = one.scores
                found.append(ChoiceScore(float(scores.logprobs.sum()), bool((scores.ranks == 0).all())))
        return found

    def _request(self, pair: tuple[str, str]) -> ScoreRequest:
        context, continuation = pair
        visible = context.rstrip()
        context, continuation = visible, context[len(visible) :] + continuation
        end = self.tokenizer.end_of_text
        before = [] if end is None or (context and not self.options.bos) else [end]
        whole = self.tokenizer.encode(context + continuation)
        n_context = len(self.tokenizer.encode(context)) if context else 0
        n_scored = len(whole) - n_context
        if n_scored < 1 or not (before or n_context):
            raise InputError(f"{continuation!r} cannot be scored alone by this tokenizer; use another task or model.")
        ids = [*before, *whole][-(self.gpt.config.context_length + 1) :]
        return ScoreRequest(ids, max(1, len(ids) - n_scored))

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings that a result reports."""
        return {"bos": self.options.bos, "limit": self.options.limit, **more}


def score_text(gpt: GPT, text: str, original: str, options: TaskOptions, task: str) -> TaskResult:
    """Compute the perplexity of one text by sliding windows: per token, per word, and bits per byte and character.

    Args:
        gpt: the model.
        text: the text to score, possibly detokenized.
        original: the text whose words are counted.
        options: how the task runs.
        task: its name.

    Raises:
        InputError: if there is no text, or the options limit the items.
    """
    scorer = PairScorer(gpt, options)
    if options.limit is not None:
        raise InputError(f"--limit counts items, but the task {task} is one text; leave --limit out.")
    if not text.strip():
        raise InputError("the file has no text; give one with some.")
    end = scorer.tokenizer.end_of_text
    ids = [*([] if end is None else [end]), *scorer.tokenizer.encode(text)]
    stride = options.stride or max(1, gpt.config.context_length // 2)
    with Progress(task, None):
        (found,) = score_sequences(gpt.runner, [ScoreRequest(ids)], ScoreOptions(stride=options.stride))
    nats = -found.scores.logprobs
    words, total = len(original.split()), float(nats.sum())
    metrics = (
        perplexity("token_perplexity", nats.tolist()),
        Metric("word_perplexity", math.exp(min(700.0, total / words))),
        Metric("bits_per_byte", total / math.log(2) / len(text.encode("utf-8"))),
        Metric("bits_per_character", total / math.log(2) / len(text)),
    )
    settings = {"bos": end is not None, "stride": stride, "words": words, "context_length": gpt.config.context_length}
    return TaskResult(task, metrics, len(nats), settings)
