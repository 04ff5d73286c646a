"""Evaluation tasks over local files: perplexity by sliding windows, LAMBADA, HellaSwag, WikiText-2 and BLiMP.

The tasks follow lm-evaluation-harness in how texts are put together, so that results can be compared: nothing is put
before a context, an empty context is the end-of-text token, and a sentence of BLiMP has a space before it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import InputError
from clearhead.evaluation.results import Metric, TaskResult, accuracy, perplexity
from clearhead.evaluation.task_files import (
    detokenize_wikitext,
    read_blimp,
    read_hellaswag,
    read_lambada,
)
from clearhead.gpt import GPT
from clearhead.inference.scoring import ScoreOptions, ScoreRequest, score_sequences
from clearhead.tokenizer import Tokenizer
from clearhead.utils.progress import Progress
from clearhead.utils.text import decode_text


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task runs.

    Attributes:
        limit: only the first so many items; None for all.
        stride: of perplexity by sliding windows; None for half the context.
        bos: put the end-of-text token before every context. An empty context is that token in any case.
    """

    limit: int | None = None
    stride: int | None = None
    bos: bool = False


@dataclass(frozen=True, slots=True)
class _ChoiceScore:
    """The score of one continuation.

    Attributes:
        logprob: of the continuation, in nats.
        greedy: whether every token of it is the most likely one.
    """

    logprob: float
    greedy: bool


class _Scorer:
    """Scores pairs of a context and a continuation, encoded as lm-evaluation-harness encodes them."""

    def __init__(self, gpt: GPT, options: TaskOptions) -> None:
        if gpt.tokenizer is None:
            raise InputError("this model has no tokenizer; put its files (tokenizer.json) beside the weights.")
        self.gpt, self.options = gpt, options
        self.tokenizer: Tokenizer = gpt.tokenizer

    def score(self, pairs: Sequence[tuple[str, str]], what: str) -> list[_ChoiceScore]:
        """Return the score of each pair's continuation, in order."""
        found = []
        with Progress(what, len(pairs)) as progress:
            for one in score_sequences(self.gpt.runner, map(self._request, pairs), ScoreOptions()):
                scores = one.scores
                found.append(_ChoiceScore(float(scores.logprobs.sum()), bool((scores.ranks == 0).all())))
                progress.advance(1)
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
        """Return what a result states."""
        return {"bos": self.options.bos, "limit": self.options.limit, **more}


def evaluate_lambada(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Predict the last word of each passage: accuracy of greedy generation, and perplexity of the word."""
    scorer = _Scorer(gpt, options)
    passages = read_lambada(file)[: options.limit]
    pairs = [(passage[: passage.rindex(" ")], passage[passage.rindex(" ") :]) for passage in passages]
    answers = scorer.score(pairs, "LAMBADA")
    metrics = (
        accuracy("acc", [answer.greedy for answer in answers]),
        perplexity("perplexity", [-answer.logprob for answer in answers]),
    )
    return TaskResult("lambada", metrics, len(answers), scorer.settings())


def evaluate_hellaswag(gpt: GPT, file: Path, options: TaskOptions, *, with_label: bool = True) -> TaskResult:
    """Choose the ending of each context: by its log-likelihood, and by that per character ("acc_norm").

    Without the activity label this is the completion style, whose "acc_norm" is per token.
    """
    scorer = _Scorer(gpt, options)
    questions = read_hellaswag(file, with_label=with_label)[: options.limit]
    pairs = [(question.context, f" {ending}") for question in questions for ending in question.endings]
    answers = iter(scorer.score(pairs, "HellaSwag"))
    right, right_normalized = [], []
    for question in questions:
        scores = np.array([next(answers).logprob for _ in question.endings])
        lengths = [
            len(ending) if with_label else _n_tokens(scorer, question.context, ending) for ending in question.endings
        ]
        right.append(int(scores.argmax()) == question.answer)
        right_normalized.append(int((scores / np.array(lengths)).argmax()) == question.answer)
    name = "hellaswag" if with_label else "hellaswag-completion"
    metrics = accuracy("acc", right), accuracy("acc_norm", right_normalized)
    return TaskResult(name, metrics, len(questions), scorer.settings())


def _n_tokens(scorer: _Scorer, context: str, ending: str) -> int:
    encode = scorer.tokenizer.encode
    return max(1, len(encode(f"{context} {ending}")) - len(encode(context)))


def evaluate_blimp(gpt: GPT, source: Path, options: TaskOptions) -> TaskResult:
    """Compare the two sentences of each minimal pair: how often the acceptable one is more likely.

    A limit counts pairs of each paradigm.
    """
    scorer = _Scorer(gpt, options)
    pairs = read_blimp(source)
    if options.limit is not None:
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for pair in pairs:
            seen[pair.paradigm] += 1
            if seen[pair.paradigm] <= options.limit:
                kept.append(pair)
        pairs = kept
    answers = scorer.score([("", f" {one}") for pair in pairs for one in (pair.good, pair.bad)], "BLiMP")
    right = [good.logprob > bad.logprob for good, bad in zip(answers[::2], answers[1::2], strict=True)]
    by_paradigm: dict[str, list[bool]] = defaultdict(list)
    by_field: dict[str, list[bool]] = defaultdict(list)
    for pair, one in zip(pairs, right, strict=True):
        by_paradigm[pair.paradigm].append(one)
        if pair.field:
            by_field[pair.field].append(one)
    groups = {f"field {name}": (accuracy("acc", values),) for name, values in sorted(by_field.items())}
    groups |= {name: (accuracy("acc", values),) for name, values in sorted(by_paradigm.items())}
    return TaskResult("blimp", (accuracy("acc", right),), len(right), scorer.settings(), groups)


def evaluate_sliding(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of a text with overlapping windows: per token, per word, and bits per byte."""
    text = decode_text(_read(file), str(file))
    return _sliding(gpt, text, text, options, "perplexity")


def evaluate_wikitext(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of WikiText-2 per original word, on detokenized text.

    The words are those of the file as it is, between white space, so the perplexity is that of its original tokens.
    """
    text = decode_text(_read(file), str(file))
    return _sliding(gpt, detokenize_wikitext(text), text, options, "wikitext2")


def _sliding(gpt: GPT, text: str, original: str, options: TaskOptions, task: str) -> TaskResult:
    scorer = _Scorer(gpt, options)
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
    )
    settings = {"bos": end is not None, "stride": stride, "words": words, "context_length": gpt.config.context_length}
    return TaskResult(task, metrics, len(nats), settings)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); check the path.") from None


def _hellaswag_completion(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    return evaluate_hellaswag(gpt, file, options, with_label=False)


TASKS: dict[str, Callable[[GPT, Path, TaskOptions], TaskResult]] = {
    "perplexity": evaluate_sliding,
    "lambada": evaluate_lambada,
    "hellaswag": evaluate_hellaswag,
    "hellaswag-completion": _hellaswag_completion,
    "wikitext2": evaluate_wikitext,
    "blimp": evaluate_blimp,
}
"""Every task by its name."""


def run_task(gpt: GPT, task: str, files: Sequence[Path], options: TaskOptions) -> Iterator[TaskResult]:
    """Yield the result of a task on each file.

    Raises:
        InputError: if there is no such task, or a file has another form.
    """
    if task not in TASKS:
        raise InputError(f"there is no task named {task!r}; the tasks are {', '.join(TASKS)}.")
    for file in files:
        yield TASKS[task](gpt, file, options)
