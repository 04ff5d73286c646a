"""Evaluation tasks over local files: perplexity by sliding windows, LAMBADA, HellaSwag, WikiText-2 and BLiMP.

The tasks follow lm-evaluation-harness in how texts are put together, so that results can be compared: nothing is put
before a context, an empty context is the end-of-text token, and a sentence of BLiMP has a space before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clearhead.errors import InputError
from clearhead.evaluation.hub_tasks import HubSource, hub_file
from clearhead.evaluation.paper_tasks import (
    evaluate_billion_words,
    evaluate_common_nouns,
    evaluate_enwik8,
    evaluate_named_entities,
    evaluate_text8,
    evaluate_treebank,
    evaluate_wikitext103,
)
from clearhead.evaluation.points import evaluate_points
from clearhead.evaluation.results import TaskResult, accuracy, perplexity
from clearhead.evaluation.task_files import (
    detokenize_wikitext,
    read_blimp,
    read_hellaswag,
    read_lambada,
)
from clearhead.evaluation.task_scoring import PairScorer, TaskOptions, score_text
from clearhead.gpt import GPT
from clearhead.utils.text import read_text

_HUB = "hub"


def evaluate_lambada(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Predict the last word of each passage: accuracy of greedy generation, and perplexity of the word."""
    scorer = PairScorer(gpt, options)
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
    scorer = PairScorer(gpt, options)
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


def _n_tokens(scorer: PairScorer, context: str, ending: str) -> int:
    encode = scorer.tokenizer.encode
    return max(1, len(encode(f"{context} {ending}")) - len(encode(context)))


def evaluate_blimp(gpt: GPT, source: Path, options: TaskOptions) -> TaskResult:
    """Compare the two sentences of each minimal pair: how often the acceptable one is more likely.

    A limit counts pairs of each paradigm.
    """
    scorer = PairScorer(gpt, options)
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
    text = read_text(file)
    return score_text(gpt, text, text, options, "perplexity")


def evaluate_wikitext(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of WikiText-2 per original word, on detokenized text.

    Words are counted in the original file, between white space, so the perplexity is per original token.
    """
    text = read_text(file)
    return score_text(gpt, detokenize_wikitext(text), text, options, "wikitext2")


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """A task that `clearhead evaluate --task` knows.

    Attributes:
        evaluate: computes the result of a model on a file of the task.
        hub: where its items are on the hub; None if it is only in files.
    """

    evaluate: Callable[[GPT, Path, TaskOptions], TaskResult]
    hub: HubSource | None = None


_HELLASWAG = HubSource("Rowan/hellaswag", None, "validation")

TASKS: dict[str, EvaluationTask] = {
    "perplexity": EvaluationTask(evaluate_sliding),
    "lambada": EvaluationTask(evaluate_lambada, HubSource("EleutherAI/lambada_openai", "default", "test")),
    "hellaswag": EvaluationTask(evaluate_hellaswag, _HELLASWAG),
    "hellaswag-completion": EvaluationTask(partial(evaluate_hellaswag, with_label=False), _HELLASWAG),
    "wikitext2": EvaluationTask(
        evaluate_wikitext, HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", "test", text="text")
    ),
    "blimp": EvaluationTask(evaluate_blimp, HubSource("nyu-mll/blimp", "*", "train")),
    "cbt-cn": EvaluationTask(evaluate_common_nouns),
    "cbt-ne": EvaluationTask(evaluate_named_entities),
    "ptb": EvaluationTask(evaluate_treebank, HubSource("ptb-text-only/ptb_text_only", None, "test", text="sentence")),
    "wikitext103": EvaluationTask(
        evaluate_wikitext103, HubSource("Salesforce/wikitext", "wikitext-103-raw-v1", "test", text="text")
    ),
    "1bw": EvaluationTask(evaluate_billion_words),
    "enwik8": EvaluationTask(evaluate_enwik8),
    "text8": EvaluationTask(evaluate_text8),
    "points": EvaluationTask(evaluate_points),
}
"""Every task by its name."""


def find_task(name: str) -> EvaluationTask:
    """Return a task.

    Raises:
        InputError: if there is none of this name.
    """
    if name not in TASKS:
        raise InputError(f"there is no task named {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


@contextmanager
def task_file(task: str, file: str) -> Iterator[Path]:
    """Provide a task's file inside a `with`: a path, `hub` for its data set on the hub, or `hub:NAME` for another one.

    Raises:
        InputError: if there is no such task, or the data set cannot be loaded.
    """
    prefix, _, name = file.partition(":")
    where = find_task(task).hub
    if prefix != _HUB:
        yield Path(file)
    elif where is None:
        known = ", ".join(one for one in TASKS if TASKS[one].hub)
        raise InputError(f"the task {task} has no data set on the hub; give its files. {known} have one.")
    else:
        with hub_file(where, name or None) as found:
            yield found


def run_task(gpt: GPT, task: str, files: Sequence[Path], options: TaskOptions) -> Iterator[TaskResult]:
    """Yield the result of a task on each file.

    Raises:
        InputError: if there is no such task, or a file is malformed.
    """
    for file in files:
        yield find_task(task).evaluate(gpt, file, options)
